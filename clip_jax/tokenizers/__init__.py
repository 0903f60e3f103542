"""Captions to ids: the published tokenizers, and those that a run has trained."""

from clip_jax.tokenizers.bpe_table import openai_table as _openai_table  # noqa: F401  its name of before
from clip_jax.tokenizers.cleaning import canonicalize, clean
from clip_jax.tokenizers.published import FILES, CaptionTokenizer, ClipTokenizer, SiglipTokenizer, load_tokenizer

__all__ = [
    "FILES",
    "CaptionTokenizer",
    "ClipTokenizer",
    "SiglipTokenizer",
    "canonicalize",
    "clean",
    "load_tokenizer",
]
