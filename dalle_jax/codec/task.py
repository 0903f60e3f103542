"""The codec's task: the evidence lower bound of images under their tokens (DALL·E Eq. 1, stage one)."""

import dataclasses
import logging
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dalle_jax.codec.config import CodecConfig, Relaxation
from dalle_jax.codec.flops import forward_flops
from dalle_jax.codec.losses import commitment_loss, kl_to_uniform, reconstruction_loss
from dalle_jax.codec.metrics import code_counts, image_errors, psnr, usage_collapsed, usage_metrics
from dalle_jax.codec.model import Codec, decode, encode, pixels_of
from dalle_jax.codec.pixels import map_pixels
from dalle_jax.codec.relaxation import gumbel_softmax, init_codebook, nearest_codes, straight_through, update_codebook
from dalle_jax.data.config import Augment
from dalle_jax.data.images.grid import image_grid
from dalle_jax.training.config import TrainConfig
from dalle_jax.training.parallel.processes import is_primary, to_host
from dalle_jax.training.task import Batch, Metrics, ModelState, Params, Task, row_weights

_log = logging.getLogger(__name__)

PREVIEW_IMAGES = 16
FOREGROUND_ALARM = 0.5
"""Evaluation warns where less than this share of the foreground's squared contrast is reproduced."""


@dataclasses.dataclass(frozen=True)
class CodecStage:
    """A training stage: the model, how long and how it is trained, and what is done to its images."""

    model: CodecConfig
    train: TrainConfig
    augment: Augment = Augment.DVAE


class CodecTask(Task):
    """Trains a `Codec`. A batch holds `image` uint8 [B, image_size, image_size, 3]; the rest of it is unused."""

    name = "codec"

    def __init__(self, stage: CodecStage, image_size: int):
        self.config = stage.model
        self.image_size = image_size
        self.grid_size = self.config.grid_size(image_size)
        self.model = Codec(self.config)
        self._evaluate_batch = jax.jit(self._evaluate)
        self._reconstruct = jax.jit(self._round_trip)

    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        """Fresh parameters; with `vq`, the model state is the codebook and its moving averages."""
        key_params, key_codebook = jax.random.split(key)
        # Sizes do not depend on the images': the smallest that the body takes is enough.
        images = jnp.zeros((1, self.config.stride, self.config.stride, 3), jnp.uint8)
        params = self.model.init(key_params, images)["params"]
        if self.config.relaxation is Relaxation.GUMBEL:
            return params, {}
        return params, init_codebook(self.config.vq, self.config.codebook_size, key_codebook)

    def prepare(self, batch: Batch) -> Batch:
        """Drops captions and labels."""
        return {name: batch[name] for name in ("image", "mask") if name in batch}

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[ModelState, Metrics]]:
        """Reconstruction and regulariser, summed over an image and divided once by its number of values (App. A.2)."""
        images = batch["image"]
        features = self.model.apply({"params": params}, images, method="encode")
        if self.config.relaxation is Relaxation.GUMBEL:
            codes, tokens, regulariser, extra = self._relax(features, key, step)
        else:
            codes, tokens, regulariser, model_state, extra = self._quantize(features, model_state, key, step)
        maps = self.model.apply({"params": params}, codes, method="decode")
        reconstruction = reconstruction_loss(
            self.config.reconstruction, map_pixels(images), maps, self.config.min_log_scale
        )
        values = images[0].size
        mse = jnp.mean(jnp.square(pixels_of(maps) - images / 255.0), axis=(1, 2, 3))
        metrics = {
            "reconstruction": jnp.mean(reconstruction) / values,
            "psnr": jnp.mean(psnr(mse)),
            **usage_metrics(code_counts(tokens, self.config.codebook_size)),
            **extra,
        }
        return jnp.mean(reconstruction + regulariser) / values, (model_state, metrics)

    def _relax(self, logits: Float[Array, "B height width K"], key: jax.Array, step: jax.Array):
        weight, temperature = self.config.gumbel.kl_weight(step), self.config.gumbel.temperature(step)
        kl = kl_to_uniform(logits)
        extra = {"kl": jnp.mean(kl), "kl_weight": weight, "temperature": temperature}
        return gumbel_softmax(logits, temperature, key), jnp.argmax(logits, axis=-1), weight * kl, extra

    def _quantize(
        self, vectors: Float[Array, "B height width E"], model_state: ModelState, key: jax.Array, step: jax.Array
    ):
        config = self.config.vq
        key_revival, key_quantized = jax.random.split(key)
        quantized = jax.random.bernoulli(key_quantized, config.quantized(step), (vectors.shape[0], 1, 1, 1))
        tokens = nearest_codes(vectors, model_state["codebook"])
        codes = model_state["codebook"][tokens]
        commitment = commitment_loss(vectors, codes)
        model_state, revived = update_codebook(config, model_state, vectors, tokens, key_revival)
        extra = {"commitment": jnp.mean(commitment), "revived_codes": revived}
        codes = jnp.where(quantized, straight_through(vectors, codes), vectors)
        regulariser = config.commitment * commitment * quantized[:, 0, 0, 0]
        return codes, tokens, regulariser, model_state, extra

    def step_flops(self, batch_size: int) -> float:
        """Three times the forward pass (each product has two in the backward pass); see `dalle_jax.codec.flops`."""
        return 3.0 * batch_size * forward_flops(self.config, self.image_size)

    def evaluate(self, params: Params, model_state: ModelState, batches: Iterable[Batch]) -> dict[str, float]:
        """What inference does, tokens without noise, on held-out images.

        Returns:
          `loss`, under the hard tokens, the regulariser at its final weight; `reconstruction`, its first part;
          `psnr`, mean over images; `foreground_psnr`, over the foreground of all images; `foreground_explained`, 1
          where it is perfect and 0 where an image of the border's colour were as good; `codebook_usage` and
          `perplexity` over the whole set; `usage_collapsed`, 1 where the alarm rings.

        Warns on stderr where the codebook's use has collapsed, or where the foreground is lost.
        """
        sums: dict[str, np.ndarray] = {}
        for batch in batches:
            for name, value in to_host(self._evaluate_batch(params, model_state, batch)).items():
                sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
        counts = sums.pop("counts")
        images = sums.pop("images")
        foreground, flat, values = (sums.pop(name) for name in ("foreground", "flat", "foreground_values"))
        metrics = {name: float(value / images) for name, value in sums.items()}
        metrics |= {name: float(value) for name, value in usage_metrics(jnp.asarray(counts, jnp.float32)).items()}
        metrics["usage_collapsed"] = float(usage_collapsed(counts, self.config.usage_alarm))
        if values:
            metrics["foreground_psnr"] = float(psnr(jnp.float32(foreground / values)))
            metrics["foreground_explained"] = float(1.0 - foreground / flat)
        if is_primary():
            self._warn(metrics)
        return metrics

    def preview(self, params: Params, model_state: ModelState, batch: Batch) -> np.ndarray:
        """Rows of originals, each over a row of their reconstructions."""
        originals = batch["image"][:PREVIEW_IMAGES]
        images = np.stack(to_host([originals, self._reconstruct(params, model_state, originals)]))
        columns = max(len(originals) // 2, 1)
        pairs = [images[:, first : first + columns] for first in range(0, len(originals), columns)]
        return image_grid(np.concatenate([pair.reshape(-1, *pair.shape[2:]) for pair in pairs]), columns)

    def _round_trip(self, params: Params, model_state: ModelState, images: Array) -> Array:
        tokens = encode(self.config, params, model_state, images)
        return decode(self.config, params, model_state, tokens)

    def _evaluate(self, params: Params, model_state: ModelState, batch: Batch) -> Metrics:
        """Sums over the rows of one batch that count."""
        config, images, rows = self.config, batch["image"], row_weights(batch)
        features = self.model.apply({"params": params}, images, method="encode")
        if config.relaxation is Relaxation.GUMBEL:
            codebook, tokens = None, jnp.argmax(features, axis=-1)
            regulariser = config.gumbel.kl_weight.end * kl_to_uniform(features)
        else:
            codebook = model_state["codebook"]
            tokens = nearest_codes(features, codebook)
            regulariser = config.vq.commitment * commitment_loss(features, codebook[tokens])
        maps = self.model.apply({"params": params}, tokens, codebook, method="decode_tokens")
        reconstruction = reconstruction_loss(config.reconstruction, map_pixels(images), maps, config.min_log_scale)
        errors = image_errors(pixels_of(maps), images)
        sums = {
            "loss": (reconstruction + regulariser) / images[0].size,
            "reconstruction": reconstruction / images[0].size,
            "psnr": psnr(errors.pop("mse")),
            "images": jnp.ones(len(images)),
            **errors,
        }
        return {name: jnp.sum(rows * value) for name, value in sums.items()} | {
            "counts": code_counts(tokens, config.codebook_size, rows)
        }

    def _warn(self, metrics: dict[str, float]) -> None:
        if metrics["usage_collapsed"]:
            _log.warning(
                f"codebook usage has collapsed to {metrics['codebook_usage']:.1%} of "
                f"{self.config.codebook_size} codes (perplexity {metrics['perplexity']:.1f})"
            )
        if metrics.get("foreground_explained", 1.0) < FOREGROUND_ALARM:
            _log.warning(
                f"the codec draws little but backgrounds: it reproduces "
                f"{max(metrics['foreground_explained'], 0.0):.0%} of the foreground"
            )
