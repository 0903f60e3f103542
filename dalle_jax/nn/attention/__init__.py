"""Attention: the patterns, and the forms in which they are computed."""

from dalle_jax.nn.attention.cached import CacheLayout, KeyValue, LayerCache, cached_attention
from dalle_jax.nn.attention.dense import causal_attention, dense_attention
from dalle_jax.nn.attention.patterns import (
    Pattern,
    attended_pairs,
    band_offsets,
    conv_offsets,
    pattern_mask,
    published_schedule,
)
from dalle_jax.nn.attention.structured import structured_attention

__all__ = [
    "CacheLayout",
    "KeyValue",
    "LayerCache",
    "Pattern",
    "attended_pairs",
    "band_offsets",
    "cached_attention",
    "causal_attention",
    "conv_offsets",
    "dense_attention",
    "pattern_mask",
    "published_schedule",
    "structured_attention",
]
