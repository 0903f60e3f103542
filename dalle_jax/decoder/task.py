"""The decoder's task: maximum likelihood of caption and image tokens (DALL·E Eq. 1, stage two)."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from dalle_jax.data.images.grid import image_grid
from dalle_jax.data.records import CodecSpec
from dalle_jax.data.samples import NO_TOKEN
from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.decoder.model import PAD, Decoder, Output, abstract_params, init_params
from dalle_jax.decoder.sampling import SamplingConfig, candidate_keys, no_prime, prefill, sample_tokens
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import attended_pairs
from dalle_jax.training.parallel.processes import to_host
from dalle_jax.training.task import Batch, Metrics, ModelState, Params, Task, row_weights, weighted_means

PREVIEW_CAPTIONS = 8


@runtime_checkable
class ImageTokens(Protocol):
    """What the decoder needs of a codec, ours or another: images to tokens and back."""

    @property
    def codebook_size(self) -> int: ...

    @property
    def grid_size(self) -> int: ...

    @property
    def image_size(self) -> int: ...

    def encode(self, images: Array) -> Array:
        """uint8 [B, height, width, 3] to int32 [B, grid_size ** 2], raster order."""
        ...

    def decode(self, tokens: Array) -> Array:
        """int32 [B, grid_size ** 2] to uint8 [B, height, width, 3]."""
        ...


def text_weights(text: Int[Array, "B T"], pad_loss: bool) -> Float[Array, "B T-1"]:
    """Weight of each text target, so that the mean over rows of the weighted sum is the mean over the batch's tokens.

    Computed on the whole batch, before it is cut into micro-batches: their average is then the batch's loss exactly,
    however many tokens fall into each.
    """
    counted = counted_targets(text, pad_loss)
    return counted * (text.shape[0] / jnp.maximum(counted.sum(), 1)).astype(jnp.float32)


def counted_targets(text: Int[Array, "B T"], pad_loss: bool) -> Bool[Array, "B T-1"]:
    """Which text targets the loss counts."""
    return jnp.ones(text[:, 1:].shape, bool) if pad_loss else text[:, 1:] != PAD


def drop_captions(
    text: Int[Array, "B T"], weights: Float[Array, "B T-1"], rate: float, key: Array
) -> tuple[Int[Array, "B T"], Float[Array, "B T-1"]]:
    """Replaces a random share of captions by the empty one, for classifier-free guidance.

    A dropped caption is no text target; the others' weights make up for it on average.
    """
    kept = jax.random.bernoulli(key, 1.0 - rate, (text.shape[0], 1))
    return text.at[:, 1:].multiply(kept), weights * kept / (1.0 - rate)


def likelihood_loss(
    output: Output, batch: Batch, text_loss_weight: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of text and image tokens, each the mean over its own kind, weighted 1/8 and 7/8 (§2.2).

    Args:
      output: logits.
      batch: `text` [B, T], `text_weights` [B, T-1] of `text_weights`, `image_tokens` [B, G].
      text_loss_weight: of the text's part.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    text = cross_entropy(output.text, batch["text"][:, 1:]) * batch["text_weights"]
    image = cross_entropy(output.image, batch["image_tokens"])
    text_loss, image_loss = text.sum(-1).mean(), image.mean()
    loss = text_loss_weight * text_loss + (1.0 - text_loss_weight) * image_loss
    return loss, {"text_loss": text_loss, "image_loss": image_loss}


class DecoderTask(Task):
    """Trains a `Decoder` on captions and on the tokens that a frozen codec makes of images."""

    name = "decoder"

    def __init__(self, config: DecoderConfig, codec: ImageTokens | CodecSpec):
        """Args:
        config: of the decoder.
        codec: makes tokens of images; its sizes alone serve where batches bring tokens and nothing is previewed.

        Raises:
          UserError: their sizes differ.
        """
        for mine, theirs in (("codebook_size", codec.codebook_size), ("grid_size", codec.grid_size)):
            if getattr(config, mine) != theirs:
                raise UserError(
                    f"config.decoder.model.{mine} is {getattr(config, mine)}, but the codec's is {theirs}: "
                    f"set --config.decoder.model.{mine}={theirs}, or name another codec"
                )
        self.config = config
        self.codec = codec
        self.model = Decoder(config)
        self._evaluate_batch = jax.jit(self._evaluate)

    @property
    def _codec(self) -> ImageTokens:
        assert isinstance(self.codec, ImageTokens), "sizes of a codec make no tokens"
        return self.codec

    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        """Fresh parameters; there is no other state."""
        return init_params(self.config, key), {}

    def prepare(self, batch: Batch) -> Batch:
        """Turns images into tokens (the most likely code, no noise) and counts the text's targets.

        A batch that brings `image_tokens` keeps them; where it brings images too (a mixture), rows of `NO_TOKEN`
        are filled with those of their images.
        """
        tokens = batch.get("image_tokens")
        if tokens is None:
            tokens = self._codec.encode(batch["image"])
        elif "image" in batch:
            tokens = jnp.where(tokens == NO_TOKEN, self._codec.encode(batch["image"]), tokens)
        weights = text_weights(batch["text"], self.config.pad_loss)
        mask = {"mask": batch["mask"]} if "mask" in batch else {}
        return {"text": batch["text"], "text_weights": weights, "image_tokens": tokens, **mask}

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[ModelState, Metrics]]:
        """See `likelihood_loss`; captions are dropped and dropout applied as the config says."""
        del step
        key_captions, key_dropout = jax.random.split(key)
        if self.config.caption_dropout:
            rate = self.config.caption_dropout
            text, weights = drop_captions(batch["text"], batch["text_weights"], rate, key_captions)
            batch = {**batch, "text": text, "text_weights": weights}
        output = self.model.apply(
            {"params": params},
            batch["text"],
            batch["image_tokens"],
            deterministic=self.config.dropout == 0.0,
            rngs={"dropout": key_dropout},
        )
        loss, metrics = likelihood_loss(output, batch, self.config.text_loss_weight)
        return loss, (model_state, metrics)

    def _evaluate(self, params: Params, batch: Batch) -> dict[str, tuple[Array, Array]]:
        """Summed cross-entropies of one batch, and of how many tokens."""
        output = self.model.apply({"params": params}, batch["text"], batch["image_tokens"])
        rows = row_weights(batch)[:, None]
        text_rows = rows * counted_targets(batch["text"], self.config.pad_loss)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        text = cross_entropy(output.text, batch["text"][:, 1:])
        image = cross_entropy(output.image, batch["image_tokens"])
        return {
            "text_loss": (jnp.sum(text * text_rows), jnp.sum(text_rows)),
            "image_loss": (jnp.sum(image * rows), jnp.sum(rows) * image.shape[1]),
        }

    def evaluate(self, params: Params, model_state: ModelState, batches: Iterable[Batch]) -> dict[str, float]:
        """`loss` and its two parts, `text_loss` and `image_loss`: each the mean over all tokens of its kind."""
        del model_state
        parts = weighted_means(self._evaluate_batch(params, batch) for batch in batches)
        weight = self.config.text_loss_weight
        return {"loss": weight * parts["text_loss"] + (1.0 - weight) * parts["image_loss"], **parts}

    def preview(self, params: Params, model_state: ModelState, batch: Batch) -> np.ndarray:
        """Two rows: the codec's view of held-out images, and an image sampled for the caption of each."""
        del model_state
        text, tokens = batch["text"][:PREVIEW_CAPTIONS], batch["image_tokens"][:PREVIEW_CAPTIONS]
        text_kv = prefill(self.config, params, text)
        keys = candidate_keys(0, jnp.arange(1))
        prime = no_prime(self.config, text.shape[0])
        sampled = sample_tokens(self.config, params, text_kv, keys, prime, SamplingConfig())
        images = self._codec.decode(jnp.concatenate([tokens, sampled[0]]))
        return image_grid(to_host(images), columns=text.shape[0])

    def step_flops(self, batch_size: int) -> float:
        """Useful FLOPs of a step: 6 per weight of a matrix product and position, 12 H per attended pair and head."""
        return training_flops(self.config, batch_size)


def training_flops(config: DecoderConfig, batch_size: int) -> float:
    """FLOPs of forward and backward by formula, recomputation not counted.

    Each weight of a matrix product costs 2 FLOPs a position forward and 4 backward; each (query, key) pair that the
    pattern allows costs 2 H for its score and 2 H for its value, a head, forward, and twice that backward. Embeddings,
    norms and the softmax are not counted.
    """
    width = config.num_heads * config.head_dim
    layer = 4 * config.embed_dim * width + 2 * config.embed_dim * config.mlp_dim
    positions = config.text_length + config.image_length
    products = config.num_layers * layer * positions
    products += config.embed_dim * config.text_vocab_size * (config.text_length - 1)
    products += config.embed_dim * config.codebook_size * config.image_length
    pairs = attended_pairs(config.schedule, config.text_length, **dataclasses.asdict(config.grid))
    return float(batch_size) * (6.0 * products + 12.0 * width * pairs)


def count_parameters(config: DecoderConfig) -> int:
    """Parameters of the model, from shapes alone."""
    return sum(x.size for x in jax.tree.leaves(nn.unbox(abstract_params(config))))
