"""The decoder: text and image tokens in, logits of the next ones out (DALL·E §2.2, Fig. 10).

Positions of the stream, with T text and G*G image positions:

    0          start-of-text, given by the tokenizer as the first text token
    1..T-1     the caption; where it has ended, the padding token of that very position
    T          start-of-image, at the row and column of image token 0
    T+1+k      image token k, at the row and column of image token k+1

so that every image state carries the place of the token that it predicts, and the last image token is never an input.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dalle_jax.decoder.config import AttentionForm, DecoderConfig
from dalle_jax.nn.attention import (
    CacheLayout,
    KeyValue,
    cached_attention,
    causal_attention,
    dense_attention,
    pattern_mask,
    structured_attention,
)
from dalle_jax.nn.layers import Dense, constrain_activations, layer_norm
from dalle_jax.nn.transformer import BlockInit, Transformer

PAD = 0
"""Text id of padding, here and in the tokenizer."""


class Output(NamedTuple):
    """Logits of the next token at every state, float32.

    `text[:, t]` is of text token t+1 (t < T-1), `image[:, k]` of image token k.
    """

    text: Float[Array, "B T-1 V"]
    image: Float[Array, "B G K"]


class StepOutput(NamedTuple):
    """What one cached image position gives: logits, and the keys and values to store for every layer."""

    logits: Float[Array, "C P K"]
    new: Any


@dataclasses.dataclass(frozen=True)
class DecoderAttention:
    """An `Attend`: which form of attention runs follows from what the stack is given.

    With caches, one image position (`context` is its number). Without, the text alone (prefill; gives back its keys
    and values) or the whole stream, by the length of the sequence.
    """

    config: DecoderConfig

    def layout(self, pattern: str) -> CacheLayout:
        """Where a layer of this pattern keeps its image positions."""
        return CacheLayout(pattern, self.config.grid)

    def __call__(self, kind, q, k, v, cache, context):
        if cache is not None:
            return self._step(kind, q, k, v, cache, context)
        if q.shape[1] == self.config.text_length:
            return causal_attention(q, k, v), KeyValue(*(jnp.swapaxes(x, 1, 2) for x in (k, v)))
        sizes = dataclasses.asdict(self.config.grid) | {"text_length": self.config.text_length}
        if self.config.attention is AttentionForm.DENSE:
            return dense_attention(q, k, v, jnp.asarray(pattern_mask(kind, **sizes))), None
        return structured_attention(kind, q, k, v, **sizes), None

    def _step(self, kind, q, k, v, cache, position):
        candidates, prompts = cache.image.k.shape[:2]
        q, k, v = (spread(x.reshape(candidates, prompts, *x.shape[2:])) for x in (q, k, v))
        new = KeyValue(k, v)
        attended = spread(cached_attention(self.layout(kind), q, new, cache, position))
        return attended.reshape(candidates * prompts, 1, *attended.shape[2:]), new


def look_up(table: Float[Array, "V D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of an embedding table, which is gathered for use like every weight.

    Left alone, the compiler looks the whole batch's ids up in each device's part of the table and sums the parts.
    """
    return constrain_activations(nn.with_logical_constraint(table, (None, None))[ids])


def spread(x: Float[Array, "C ..."], leading: int = 0) -> Float[Array, "C ..."]:
    """Candidates over all devices of the batch, where their caches lie; `leading` axes before them are not split."""
    return nn.with_logical_constraint(x, (*(None,) * leading, "batch", *(None,) * (x.ndim - leading - 1)))


def constrain_logits(logits: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
    """Keeps logits where their rows are; the vocabulary is split too where the batch leaves its mesh axis free."""
    return nn.with_logical_constraint(logits, ("batch", None, "vocab"))


class Decoder(nn.Module):
    """The model. `__call__` trains it; `prefill` and `step` sample from it."""

    config: DecoderConfig

    def setup(self):
        config = self.config
        vocab, position = ("vocab", "embed"), (None, "embed")

        def table(name, rows, axes):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
            return self.param(name, init, (rows, config.embed_dim), jnp.float32)

        self.text_embedding = table("text_embedding", config.text_vocab_size, vocab)
        self.pad_embedding = table("pad_embedding", config.text_length, position)
        self.text_position = table("text_position", config.text_length, position)
        self.image_embedding = table("image_embedding", config.codebook_size, vocab)
        self.start_of_image = table("start_of_image", 1, position)
        self.row_position = table("row_position", config.grid_size, position)
        self.column_position = table("column_position", config.grid_size, position)
        attend = DecoderAttention(config)
        init_fns = BlockInit.gpt2(config.num_layers)
        self.transformer = Transformer(config.transformer, init_fns, config.schedule, attend)
        self.final_norm = layer_norm(config.norm_epsilon)
        head_init = nn.initializers.normal(0.02)
        # Logits are computed in float32 whatever the config's dtype (App. D).
        self.text_head = Dense(config.text_vocab_size, ("embed", "vocab"), head_init)
        self.image_head = Dense(config.codebook_size, ("embed", "vocab"), head_init)

    def __call__(
        self, text: Int[Array, "B T"], image_tokens: Int[Array, "B G"], *, deterministic: bool = True
    ) -> Output:
        """Logits of every next token.

        Args:
          text: token ids, start-of-text first, `PAD` where the caption has ended.
          image_tokens: codes in raster order; the last one does not influence the result.
          deterministic: False applies dropout.
        """
        before = jnp.broadcast_to(self.start_of_image, (text.shape[0], 1, self.config.embed_dim))
        image = jnp.concatenate([before, look_up(self.image_embedding, image_tokens[:, :-1])], axis=1)
        x = jnp.concatenate([self._embed_text(text), image + self._places()], axis=1)
        x, _ = self.transformer(constrain_activations(x), deterministic=deterministic)
        x = constrain_activations(self.final_norm(x))
        length = self.config.text_length
        return Output(
            text=constrain_logits(self.text_head(x[:, : length - 1])),
            image=constrain_logits(self.image_head(x[:, length:])),
        )

    def prefill(self, text: Int[Array, "P T"]) -> Any:
        """Text keys and values of every layer, `KeyValue` of [(layers,) P, N, T, H], in the stack's cache form."""
        _, text_kv = self.transformer(self._embed_text(text))
        return text_kv

    def step(self, previous: Int[Array, "C P"], position: Int[Array, ""], caches: Any) -> StepOutput:
        """Logits of image token `position`, given the one before it.

        Args:
          previous: image token `position - 1` (ignored at position 0) of each candidate of each prompt.
          position: 0 to grid_size ** 2 - 1.
          caches: `LayerCache` of every layer, in the stack's form.
        """
        embedded = jnp.where(position == 0, self.start_of_image[0], self.image_embedding[previous])
        x = (embedded + self._places()[position]).reshape(-1, 1, self.config.embed_dim)
        x, new = self.transformer(constrain_activations(x), caches, position)
        logits = self.image_head(self.final_norm(x))
        return StepOutput(logits.reshape(*previous.shape, -1), new)

    def _embed_text(self, text: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        embedded = jnp.where((text == PAD)[..., None], self.pad_embedding, look_up(self.text_embedding, text))
        return embedded + self.text_position

    def _places(self) -> Float[Array, "G D"]:
        """Row plus column embedding of every image position."""
        places = self.row_position[:, None] + self.column_position[None, :]
        return places.reshape(self.config.image_length, self.config.embed_dim)


def init_params(config: DecoderConfig, key: Key[Array, ""]) -> Any:
    """Fresh parameters, in the boxes that carry their logical axes."""
    text = jnp.zeros((1, config.text_length), jnp.int32)
    image_tokens = jnp.zeros((1, config.image_length), jnp.int32)
    return Decoder(config).init(key, text, image_tokens)["params"]


def abstract_params(config: DecoderConfig) -> Any:
    """Shapes, dtypes and boxes of the parameters; computes nothing and needs no memory."""
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
