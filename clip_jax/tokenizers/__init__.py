"""Captions to ids: the published tokenizers, and those that a run has trained."""

from clip_jax.tokenizers.published import FILES, CaptionTokenizer, ClipTokenizer, load_tokenizer

__all__ = ["FILES", "CaptionTokenizer", "ClipTokenizer", "load_tokenizer"]
