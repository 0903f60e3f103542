"""What the one training loop asks of a model: `Task`, which codec, decoder and CLIP each implement."""

import abc
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dalle_jax.training.parallel.processes import to_host

Params = Any
"""A tree of float32 arrays, trained by gradient."""

ModelState = Any
"""A tree of arrays that is not trained by gradient: batch statistics, EMA codebooks. `{}` where there is none."""

Batch = dict[str, jax.Array]
"""`image` uint8 [B, height, width, 3], `text` int32 [B, T], and whatever else a task's `prepare` adds.

Held-out batches hold `mask` too, bool [B]: False for the rows that count nowhere (`Batches.epoch`)."""

Metrics = dict[str, Any]
"""Scalars by name, float32."""


def row_weights(batch: Batch) -> Float[Array, " B"]:
    """1 for the rows of a batch that count, 0 for the others; all count where there is no `mask`."""
    if "mask" in batch:
        return batch["mask"].astype(jnp.float32)
    return jnp.ones(len(next(iter(batch.values()))))


def weighted_means(results: Iterable[dict[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Means over all that was counted in all batches, however it is spread over them.

    Args:
      results: of each batch, by name: a sum, and how many numbers were summed.
    """
    totals: dict[str, np.ndarray] = {}
    for result in to_host(list(results)):
        for name, pair in result.items():
            totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    return {name: float(total / max(count, 1)) for name, (total, count) in totals.items()}


@runtime_checkable
class HasExactGradients(Protocol):
    """A task whose accumulation over micro-batches is not a mean: every row of the batch counts for each."""

    def gradients(
        self,
        params: Params,
        model_state: ModelState,
        batch: Batch,
        *,
        key: jax.Array,
        step: jax.Array,
        micro_batches: int,
        whole: Callable[[Params], Params],
    ) -> tuple[Params, tuple[ModelState, Metrics]]:
        """Gradients of the whole batch, and (state after the step, metrics, `loss` among them).

        Args:
          params: what is differentiated.
          model_state: state before the step.
          batch: a prepared batch.
          key: of this step.
          step: int32 scalar.
          micro_batches: parts of which one at a time has its activations in memory.
          whole: gives all parameters of `params`, the frozen ones among them.
        """
        ...


class Task(abc.ABC):
    """A model with its objective. Every method is pure in its arguments.

    A task may hold frozen arrays (the decoder's holds the codec). It passes them to compiled functions as arguments,
    never as constants of the program.
    """

    name: str
    """Of the stage: `codec`, `decoder` or `clip`; also its folder in the work directory."""

    best_metric: str = "loss"
    """The metric of `evaluate` by which the best checkpoint is kept."""

    best_mode: str = "min"
    """`min` or `max` of that metric."""

    @abc.abstractmethod
    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        """Fresh parameters, still in the boxes that carry their logical axes (`nn.LogicallyPartitioned`)."""

    def prepare(self, batch: Batch) -> Batch:
        """Runs on device before the step, on a batch that is already on the mesh; the identity by default."""
        return batch

    @abc.abstractmethod
    def loss(
        self, params: Params, model_state: ModelState, batch: Batch, *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[ModelState, Metrics]]:
        """The training objective of one (micro-)batch.

        Args:
          params: unboxed parameters.
          model_state: state before the step.
          batch: a prepared batch.
          key: of this step and this micro-batch; the only source of randomness.
          step: int32 scalar, for schedules inside the objective.

        Returns:
          The mean loss over the batch, float32, and (state after the step, metrics).
        """

    def constrain(self, params: Params) -> Params:
        """Projects the parameters after every update (CLIP's largest logit scale); the identity by default."""
        return params

    def step_flops(self, batch_size: int) -> float:
        """Useful floating-point operations of one training step, by formula (forward + backward); 0 if not counted."""
        del batch_size
        return 0.0

    @abc.abstractmethod
    def evaluate(self, params: Params, model_state: ModelState, batches: Iterable[Batch]) -> dict[str, float]:
        """Held-out loss under `loss`, and what the task cares about: means over all rows of all batches that count.

        `batches` are prepared and finite.
        """

    @abc.abstractmethod
    def preview(self, params: Params, model_state: ModelState, batch: Batch) -> np.ndarray | None:
        """The preview of a run: one image, uint8 [height, width, 3], or None."""
