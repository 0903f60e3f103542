"""Useful floating-point operations of a CLIP, by formula; a multiplication and an addition count as two."""

from clip_jax.config import ClipConfig, ResNetConfig, TextConfig, TextTower, VisionConfig
from clip_jax.resnet import EXPANSION
from dalle_jax.nn.transformer import TransformerConfig


def transformer_flops(config: TransformerConfig, length: int, causal: bool = False) -> int:
    """Forward pass of a stack over one sequence: projections, MLPs, and attention over the pairs that attend."""
    width = config.num_heads * config.head_dim
    products = 4 * config.embed_dim * width + 2 * config.embed_dim * config.mlp_dim
    pairs = length * (length + 1) // 2 if causal else length**2
    return 2 * config.num_layers * (length * products + 2 * pairs * width)


def image_flops(config: VisionConfig, embed_dim: int) -> int:
    """Forward pass of one picture, patch embedding (or stem) and projection included."""
    projection = 2 * config.embed_dim * embed_dim
    if config.resnet is not None:
        return resnet_flops(config.resnet, config.image_size) + projection
    patches = 2 * config.num_patches * config.patch_size**2 * 3 * config.embed_dim
    return patches + transformer_flops(config.vit, config.num_patches + 1) + projection


def resnet_flops(config: ResNetConfig, image_size: int) -> int:
    """Forward pass of one picture to the attention pool: convolutions, and the pool's products."""
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


def text_flops(config: TextConfig, embed_dim: int, length: int | None = None) -> int:
    """Forward pass of one caption of `length` positions (default: all); a bag of words has its projection only."""
    projection = 2 * config.transformer.embed_dim * embed_dim
    if config.tower is TextTower.BAG_OF_WORDS:
        return projection
    return projection + transformer_flops(config.transformer, length or config.context_length, causal=True)


def forward_flops(config: ClipConfig, batch_size: int) -> int:
    """Forward pass of a batch of pairs: both towers, and the logits of both directions."""
    pair = image_flops(config.vision, config.embed_dim) + text_flops(config.text, config.embed_dim)
    return batch_size * (pair + 2 * 2 * batch_size * config.embed_dim)
