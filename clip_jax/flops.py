"""Useful floating-point operations of a CLIP, by formula; a multiplication and an addition count as two."""

from clip_jax.config import ClipConfig, Loss, TextConfig, TextTower, VisionConfig, VisionTower
from dalle_jax.nn.transformer import TransformerConfig


def transformer_flops(config: TransformerConfig, length: int, causal: bool = False) -> int:
    """Forward pass of a stack over one sequence: projections, MLPs, and attention over the pairs that attend."""
    width = config.num_heads * config.head_dim
    products = 4 * config.embed_dim * width + 2 * config.embed_dim * config.mlp_dim
    pairs = length * (length + 1) // 2 if causal else length**2
    return 2 * config.num_layers * (length * products + 2 * pairs * width)


def image_flops(config: VisionConfig, embed_dim: int) -> int:
    """Forward pass of one picture, patch embedding and projection included."""
    width = config.transformer.embed_dim
    patches = 2 * config.num_patches * config.patch_size**2 * 3 * width
    if config.tower is VisionTower.SIGLIP:
        towers = transformer_flops(config.transformer, config.num_patches)
        return patches + towers + _pooling_flops(config.transformer, config.num_patches)
    return patches + transformer_flops(config.transformer, config.num_patches + 1) + 2 * width * embed_dim


def _pooling_flops(config: TransformerConfig, length: int) -> int:
    """Keys and values of all positions; query, output and MLP of one (the query is the same for all pictures)."""
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


def forward_flops(config: ClipConfig, batch_size: int) -> int:
    """Forward pass of a batch of pairs: both towers, and the logits (softmax: of each direction by itself)."""
    products = 1 if config.loss is Loss.SIGMOID else 2
    pair = image_flops(config.vision, config.embed_dim) + text_flops(config.text, config.embed_dim)
    return batch_size * (pair + products * 2 * batch_size * config.embed_dim)
