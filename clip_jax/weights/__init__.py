"""Published weights, in and out: which family a path is of, and a module for each family's names."""

from clip_jax.weights.opening import Published, is_published, open_published

__all__ = ["Published", "is_published", "open_published"]
