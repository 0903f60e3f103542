"""The text towers: a causal transformer (Radford et al. 2021, §2.4) and a bag of words (§2.3)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import normal
from jaxtyping import Array, Float, Int

from clip_jax.config import ReadAt, TextConfig
from clip_jax.towers import initializers
from dalle_jax.nn.attention import causal_attention
from dalle_jax.nn.layers import layer_norm
from dalle_jax.nn.transformer import Transformer, same_everywhere, uniform_kinds


def end_positions(ids: Int[Array, "B T"], end_id: int) -> Int[Array, " B"]:
    """Position of the first end-of-text token of each caption; 0 where there is none."""
    return jnp.argmax(ids == end_id, axis=-1)


def feature_positions(ids: Any, config: TextConfig) -> Any:
    """The position that holds each caption's feature; int [B] of ids [B, T], of NumPy or on a device."""
    if config.read_at is ReadAt.HIGHEST:
        return ids.argmax(axis=-1)
    return (ids == config.end_id).argmax(axis=-1)


class TokenEmbedding(nn.Module):
    """Table of vectors of the vocabulary's ids."""

    config: TextConfig
    stddev: float = 0.02
    """Of the initialiser."""

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        init = nn.with_logical_partitioning(normal(self.stddev), ("vocab", "embed"))
        shape = (self.config.vocab_size, self.config.transformer.embed_dim)
        vectors = jnp.take(self.param("embedding", init, shape, jnp.float32), ids, axis=0)
        return vectors.astype(jnp.float32)  # published parameters may be kept in half precision


class TextTransformer(nn.Module):
    """Causal blocks over token and position embeddings; the feature stands at the end-of-text token (see `ReadAt`).

    Nothing attends to what follows it, so padding needs no mask, and ids may be cut after the longest caption's end
    token: `T` is any length up to `context_length`.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], *, train: bool = False) -> Float[Array, "B D"]:
        """Args: ids: captions; train: drop units, by the stream `dropout`.

        Returns: features before the projection, float32.
        """
        config, sizes = self.config, self.config.transformer
        positions_init = nn.with_logical_partitioning(normal(0.01), (None, "embed"))
        shape = (config.context_length, sizes.embed_dim)
        positions = self.param("position_embedding", positions_init, shape, jnp.float32)
        x = TokenEmbedding(config, name="token_embedding")(ids) + positions[: ids.shape[1]]
        blocks = initializers.text_blocks(sizes)
        attend = same_everywhere(causal_attention)
        x, _ = Transformer(sizes, blocks, uniform_kinds(sizes), attend, name="transformer")(x, deterministic=not train)
        at = feature_positions(ids, config)
        x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
        return layer_norm(sizes.norm_epsilon, "norm_final")(x)


class BagOfWords(nn.Module):
    """The mean of the embeddings up to the end-of-text token, normalised: the caption without its order.

    The paper calls this encoder CBOW and gives no more of it. The start and end tokens stay in the mean: each occurs
    once in every caption, so they tell its length and nothing else, and an empty caption still has a feature.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], *, train: bool = False) -> Float[Array, "B D"]:
        """Args: ids: captions; train: makes no difference. Returns: features before the projection, float32."""
        del train
        ends = end_positions(ids, self.config.end_id)
        inside = jnp.arange(ids.shape[1]) <= ends[:, None]
        x = TokenEmbedding(self.config, name="token_embedding")(ids)
        mean = jnp.sum(jnp.where(inside[..., None], x, 0), axis=1) / (ends[:, None] + 1)
        return layer_norm(self.config.transformer.norm_epsilon, "norm_final")(mean)
