"""Useful floating-point operations of a CLIP, by formula; a multiplication and an addition count as two."""

import dataclasses

from clip_jax.config import (
    ClipConfig,
    ClipStage,
    Lock,
    ResNetConfig,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
)
from clip_jax.towers.resnet import EXPANSION
from dalle_jax.nn.transformer import TransformerConfig


def transformer_flops(config: TransformerConfig, length: int, causal: bool = False) -> int:
    """Forward pass of a stack over one sequence: projections, MLPs, and attention over the pairs that attend."""
    width = config.num_heads * config.head_dim
    products = 4 * config.embed_dim * width + 2 * config.embed_dim * config.mlp_dim
    pairs = length * (length + 1) // 2 if causal else length**2
    return 2 * config.num_layers * (length * products + 2 * pairs * width)


def image_flops(config: VisionConfig, embed_dim: int, *, patches: int | None = None) -> int:
    """Forward pass of one image, patch embedding (or stem) and projection included.

    Args:
      config: of the image tower.
      embed_dim: of the shared space.
      patches: how many a ViT reads; None: all.
    """
    projection = 2 * config.embed_dim * embed_dim
    if config.resnet is not None:
        return resnet_flops(config.resnet, config.image_size) + projection
    count = config.num_patches if patches is None else patches
    embedding = 2 * count * config.patch_size**2 * 3 * config.embed_dim
    if config.tower is VisionTower.SIGLIP:
        return embedding + transformer_flops(config.vit, count) + _pooling_flops(config.vit, count)
    return embedding + transformer_flops(config.vit, count + 1) + projection


def resnet_flops(config: ResNetConfig, image_size: int) -> int:
    """Forward pass of one image to the attention pool: convolutions, and the pool's products."""
    width, side = config.width, image_size // 2
    total = side**2 * 9 * (3 * width // 2 + (width // 2) ** 2 + width // 2 * width)
    side, features_in = side // 2, width
    for i, blocks in enumerate(config.layers):
        planes = 2**i * width
        features = EXPANSION * planes
        after = side if i == 0 else side // 2  # the first block halves behind its second convolution
        first = side**2 * (features_in * planes + 9 * planes**2) + after**2 * (planes + features_in) * features
        others = after**2 * (2 * features * planes + 9 * planes**2)
        total += first + (blocks - 1) * others
        side, features_in = after, features
    positions = side**2 + 1
    return 2 * (total + (1 + 2 * positions) * config.embed_dim**2 + 2 * positions * config.embed_dim)


def _pooling_flops(config: TransformerConfig, length: int) -> int:
    """Keys and values of all positions; query, output and MLP of one (the query is the same for all images)."""
    width = config.num_heads * config.head_dim
    once = config.embed_dim * width + 2 * config.embed_dim * config.mlp_dim
    return 2 * (length * 2 * config.embed_dim * width + 2 * length * width + once)


def text_flops(config: TextConfig, embed_dim: int, length: int | None = None) -> int:
    """Forward pass of one caption of `length` positions (default: all); a bag of words has its projection only."""
    projection = 2 * config.transformer.embed_dim * embed_dim
    if config.tower is TextTower.BAG_OF_WORDS:
        return projection
    causal = config.tower is TextTower.TRANSFORMER
    return projection + transformer_flops(config.transformer, length or config.context_length, causal=causal)


def step_flops(stage: ClipStage, batch_size: int) -> float:
    """A training step: three times the forward pass, since each product has two in the backward pass.

    Patches that are dropped count nowhere; what is locked has a forward pass alone.
    """
    config = stage.model
    patches = config.vision.kept_patches if stage.trains(Lock.IMAGE) else config.vision.num_patches
    image = image_flops(config.vision, config.embed_dim, patches=patches)
    text = text_flops(config.text, config.embed_dim)
    logits = config.objective.logit_products * 2 * batch_size * config.embed_dim
    forward_alone = 0
    if stage.locked_tower is not Lock.NONE:
        of_image = stage.locked_tower is Lock.IMAGE
        forward_alone = image if of_image else text
        if stage.unlocked_layers:
            sizes = config.vision.vit if of_image else config.text.transformer
            trained = dataclasses.replace(sizes, num_layers=stage.unlocked_layers)
            length = patches + (config.vision.tower is VisionTower.VIT) if of_image else config.text.context_length
            forward_alone -= transformer_flops(trained, length, causal=_causal(config, of_image))
            forward_alone -= _after_blocks(config, patches, of_image)
    return float(batch_size * (3 * (image + text + logits) - 2 * forward_alone))


def _causal(config: ClipConfig, of_image: bool) -> bool:
    return not of_image and config.text.tower is TextTower.TRANSFORMER


def _after_blocks(config: ClipConfig, patches: int, of_image: bool) -> int:
    """What follows the blocks of a tower, and is trained with the last of them."""
    if of_image and config.vision.tower is VisionTower.SIGLIP:
        return _pooling_flops(config.vision.vit, patches)
    return 2 * (config.vision if of_image else config.text.transformer).embed_dim * config.embed_dim
