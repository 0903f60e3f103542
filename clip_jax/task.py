"""CLIP's training: the task that the one loop runs."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clip_jax.accumulation import accumulated_gradients
from clip_jax.config import ClipConfig, ClipStage, Loss
from clip_jax.flops import forward_flops
from clip_jax.losses import ContrastiveLoss, contrastive_loss
from clip_jax.model import ClipModel, init_params, normalize
from clip_jax.preview import similarity_sheet
from clip_jax.sigmoid_loss import sigmoid_loss
from clip_jax.vision import normalize_pixels
from dalle_jax.training.task import Batch, Metrics, ModelState, Params, Task


class ClipTask(Task):
    """Contrastive training of both towers.

    A batch holds `image` uint8 [B, image_size, image_size, 3] and `text` int32 [B, context_length].
    """

    name = "clip"

    def __init__(self, stage: ClipStage):
        self.config: ClipConfig = stage.model
        self.loss_chunk = stage.loss_chunk
        self.model = ClipModel(self.config)
        self._evaluate_batch = jax.jit(self._evaluate)
        self._matches = jax.jit(self._match)

    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        return init_params(self.config, key), {}

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[ModelState, Metrics]]:
        del key, step  # nothing here is random
        loss, metrics = self._objective(params, self._encode(params, batch))
        return loss, (model_state, metrics)

    def gradients(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        *,
        key: jax.Array,
        step: jax.Array,
        micro_batches: int,
    ) -> tuple[Params, tuple[ModelState, Metrics]]:
        """Exact accumulation: every picture is contrasted with the captions of the whole batch.

        The metrics are those of `loss`, and the loss itself.
        """
        if micro_batches == 1:
            differentiate = jax.value_and_grad(self.loss, has_aux=True)
            (loss, (model_state, metrics)), gradients = differentiate(params, model_state, batch, key=key, step=step)
        else:
            gradients, (loss, metrics) = accumulated_gradients(
                self._encode, self._objective, params, batch, micro_batches
            )
        return gradients, (model_state, metrics | {"loss": loss})

    def constrain(self, params: Params) -> Params:
        """Clips the scale on the parameter, after the update (the paper says at what, not where); SigLIP's is free."""
        if self.config.loss is Loss.SIGMOID:
            return params
        limit = jnp.log(jnp.float32(self.config.max_logit_scale))
        return {**params, "logit_scale": jnp.minimum(params["logit_scale"], limit)}

    def step_flops(self, batch_size: int) -> float:
        """Three times the forward pass (each product has two in the backward pass); see `clip_jax.flops`."""
        return 3.0 * forward_flops(self.config, batch_size)

    def evaluate(self, params: Params, model_state: ModelState, batches: Iterable[Batch]) -> dict[str, float]:
        """Held-out loss and retrieval, each the mean over `batches`, which hold equally many pairs.

        Returns:
          `loss`; `image_retrieval_at_1`: share of captions whose own picture scores highest among the batch's;
          `text_retrieval_at_1`: share of pictures whose own caption does. Equal captions count as one.
        """
        del model_state
        totals: dict[str, list[float]] = {}
        for batch in batches:
            for name, value in self._evaluate_batch(params, batch).items():
                totals.setdefault(name, []).append(value)
        return {name: float(np.mean(jax.device_get(values))) for name, values in totals.items()}

    def preview(self, params: Params, model_state: ModelState, batch: Batch) -> np.ndarray | None:
        """The first pictures of a batch, and how each takes to the captions of all of them (`similarity_sheet`)."""
        del model_state
        count = min(16, len(batch["image"]))
        few = {name: np.asarray(batch[name])[:count] for name in ("image", "text")}
        return similarity_sheet(few["image"], np.asarray(self._matches(params, few)))

    def _encode(self, params: Params, batch: Batch) -> tuple[Float[Array, "B E"], Float[Array, "B E"]]:
        pixels = normalize_pixels(jnp.asarray(batch["image"]), self.config.vision)
        output = self.model.apply({"params": params}, pixels, batch["text"])
        return output.image, output.text

    def _contrast(self, params: Params, features: tuple[Array, Array]) -> ContrastiveLoss:
        scale = jnp.exp(params["logit_scale"])
        if self.config.loss is Loss.SIGMOID:
            return sigmoid_loss(*features, scale, params["logit_bias"], chunk=self.loss_chunk)
        return contrastive_loss(*features, scale, chunk=self.loss_chunk)

    def _objective(self, params: Params, features: tuple[Array, Array]) -> tuple[jax.Array, Metrics]:
        result = self._contrast(params, features)
        rows = jnp.arange(len(result.best_text))
        metrics = {
            "logit_scale": jnp.exp(params["logit_scale"]),
            "image_accuracy": jnp.mean(result.best_text == rows, dtype=jnp.float32),
            "text_accuracy": jnp.mean(result.best_image == rows, dtype=jnp.float32),
        }
        if self.config.loss is Loss.SIGMOID:
            metrics["logit_bias"] = params["logit_bias"]
        return result.loss, metrics

    def _evaluate(self, params: Params, batch: Batch) -> Metrics:
        result = self._contrast(params, self._encode(params, batch))
        text = batch["text"]
        return {
            "loss": result.loss,
            "text_retrieval_at_1": jnp.mean(jnp.all(text[result.best_text] == text, axis=-1), dtype=jnp.float32),
            "image_retrieval_at_1": jnp.mean(jnp.all(text[result.best_image] == text, axis=-1), dtype=jnp.float32),
        }

    def _match(self, params: Params, batch: Batch) -> Float[Array, "B B"]:
        image, text = self._encode(params, batch)
        return jax.nn.softmax(jnp.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T, axis=-1)
