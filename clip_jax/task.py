"""CLIP's training: the task that the one loop runs."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clip_jax.config import ClipStage, Lock
from clip_jax.flops import step_flops
from clip_jax.losses.accumulation import accumulated_gradients, check_accumulation
from clip_jax.losses.base import ContrastiveLoss, Mask, normalize
from clip_jax.model import ClipModel, init_variables
from clip_jax.preview import similarity_sheet
from clip_jax.towers.vit import normalize_pixels
from dalle_jax.nn.precision import matmul
from dalle_jax.training.parallel.processes import to_host
from dalle_jax.training.task import Batch, Metrics, ModelState, Params, Task, row_weights, weighted_means

Features = tuple[Float[Array, "B E"], Float[Array, "B E"]]
"""Of images and captions, projected, not normalised."""


class ClipTask(Task):
    """Contrastive training of both towers.

    A batch holds `image` uint8 [B, image_size, image_size, 3] and `text` int32 [B, context_length]. The model state is
    that of the image tower: a ResNet's `batch_stats`, moved by every step, read by evaluation and inference.
    """

    name = "clip"

    def __init__(self, stage: ClipStage):
        check_accumulation(stage, stage.train.micro_batches)
        self.stage, self.config = stage, stage.model
        self.model = ClipModel(self.config)
        self._evaluate_batch = jax.jit(self.evaluate_batch)
        self._matches = jax.jit(self._match)

    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        variables = dict(init_variables(self.config, key))
        return variables.pop("params"), variables

    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[ModelState, Metrics]]:
        del step
        features, model_state = self._encode(params, model_state, batch, key)
        loss, metrics = self._objective(params, features)
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
        whole: Callable[[Params], Params] = lambda trained: trained,
    ) -> tuple[Params, tuple[ModelState, Metrics]]:
        """Exact accumulation: every image is contrasted with the captions of the whole batch.

        The metrics are those of `loss`, and the loss itself.

        Raises:
          UserError: micro-batches of a ResNet, see `check_accumulation`.
        """
        check_accumulation(self.stage, micro_batches)
        if micro_batches == 1:
            differentiate = jax.value_and_grad(
                lambda p: self.loss(whole(p), model_state, batch, key=key, step=step), has_aux=True
            )
            (loss, (model_state, metrics)), gradients = differentiate(params)
        else:
            gradients, (loss, metrics) = accumulated_gradients(
                lambda p, part, part_key: self._encode(whole(p), model_state, part, part_key)[0],
                lambda p, features: self._objective(whole(p), features),
                params,
                batch,
                key,
                micro_batches,
            )
        return gradients, (model_state, metrics | {"loss": loss})

    def constrain(self, params: Params) -> Params:
        """Keeps the parameters of the loss in their bounds."""
        return self.config.objective.constrain(params, self.config.max_logit_scale)

    def step_flops(self, batch_size: int) -> float:
        """See `clip_jax.flops`."""
        return step_flops(self.stage, batch_size)

    def evaluate(self, params: Params, model_state: ModelState, batches: Iterable[Batch]) -> dict[str, float]:
        """Held-out loss and retrieval, each the mean over the pairs of all batches that count (`mask`).

        The others are no counterparts either: where the last batch holds fewer pairs, these have fewer to be told from.

        Returns:
          `loss`; `image_retrieval_at_1`: share of captions whose own image scores highest among the batch's;
          `text_retrieval_at_1`: share of images whose own caption does. Equal captions count as one.
        """
        return weighted_means(self._evaluate_batch(params, model_state, batch) for batch in batches)

    def preview(self, params: Params, model_state: ModelState, batch: Batch) -> np.ndarray | None:
        """The first images of a batch, and how each takes to the captions of all of them (`similarity_sheet`)."""
        count = min(16, len(batch["image"]))
        few = {name: to_host(batch[name])[:count] for name in ("image", "text")}
        return similarity_sheet(few["image"], to_host(self._matches(params, model_state, few)))

    def _encode(
        self, params: Params, model_state: ModelState, batch: Batch, key: jax.Array | None = None
    ) -> tuple[Features, ModelState]:
        """Features, and the model state; with a key as in training: patches are dropped, and batch statistics are the
        batch's own and move the stored ones. A tower that is wholly locked still runs as in evaluation."""
        pixels = normalize_pixels(jnp.asarray(batch["image"]), self.config.vision)
        train_image, train_text = (key is not None and self.stage.trains(side) for side in (Lock.IMAGE, Lock.TEXT))
        output, updated = self.model.apply(
            {"params": params, **model_state},
            pixels,
            batch["text"],
            train_image=train_image,
            train_text=train_text,
            rngs=None if key is None else {"dropout": key},
            mutable=list(model_state) if train_image else [],
        )
        return (output.image, output.text), {**model_state, **updated}

    def _contrast(self, params: Params, features: Features, mask: Mask = None) -> ContrastiveLoss:
        return self.config.objective(*features, params, chunk=self.stage.loss_chunk, mask=mask)

    def _objective(self, params: Params, features: Features) -> tuple[jax.Array, Metrics]:
        result = self._contrast(params, features)
        rows = jnp.arange(len(result.best_text))
        metrics = self.config.objective.metrics(params) | {
            "image_accuracy": jnp.mean(result.best_text == rows, dtype=jnp.float32),
            "text_accuracy": jnp.mean(result.best_image == rows, dtype=jnp.float32),
        }
        return result.loss, metrics

    def evaluate_batch(
        self, params: Params, model_state: ModelState, batch: Batch
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        """What `evaluate` reports, summed over the pairs of one batch, and of how many; to be jitted."""
        features, _ = self._encode(params, model_state, batch)
        result = self._contrast(params, features, batch.get("mask"))
        ids, rows = batch["text"], row_weights(batch)
        count = jnp.sum(rows)

        def own(best: Int[Array, " B"]) -> tuple[jax.Array, jax.Array]:
            return jnp.sum(rows * jnp.all(ids[best] == ids, axis=-1)), count

        return {
            # A mean over no pair is not a number, and is not to count for one.
            "loss": (jnp.where(count > 0, result.loss * count, 0.0), count),
            "text_retrieval_at_1": own(result.best_text),
            "image_retrieval_at_1": own(result.best_image),
        }

    def _match(self, params: Params, model_state: ModelState, batch: Batch) -> Float[Array, "B B"]:
        (image, text), _ = self._encode(params, model_state, batch)
        return jax.nn.softmax(matmul(jnp.exp(params["logit_scale"]) * normalize(image), normalize(text).T), axis=-1)
