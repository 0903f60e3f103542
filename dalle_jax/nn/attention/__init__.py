"""Attention: the patterns, and the forms in which they are computed."""

from dalle_jax.nn.attention.band import Band, conv_offsets
from dalle_jax.nn.attention.base import AttentionPattern, Grid, KeyValue
from dalle_jax.nn.attention.cached import CacheLayout, LayerCache, cached_attention
from dalle_jax.nn.attention.dense import causal_attention, dense_attention
from dalle_jax.nn.attention.patterns import (
    PATTERNS,
    Pattern,
    attended_pairs,
    band_offsets,
    find_pattern,
    pattern_mask,
    published_schedule,
)
from dalle_jax.nn.attention.structured import structured_attention

__all__ = [
    "PATTERNS",
    "AttentionPattern",
    "Band",
    "CacheLayout",
    "Grid",
    "KeyValue",
    "LayerCache",
    "Pattern",
    "attended_pairs",
    "band_offsets",
    "cached_attention",
    "causal_attention",
    "conv_offsets",
    "dense_attention",
    "find_pattern",
    "pattern_mask",
    "published_schedule",
    "structured_attention",
]
