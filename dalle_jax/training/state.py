"""All that changes from step to step, where each array of it lives, and how it begins."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dalle_jax.training.parallel.sharding import ShardingRules, param_shardings
from dalle_jax.training.task import ModelState, Params, Task
from dalle_jax.training.trees import unbox


class TrainState(flax.struct.PyTreeNode):
    """What a training step takes and gives.

    Leaves are arrays; or, of the same structure, abstract arrays or shardings.

    Attributes:
      step: updates made so far, int32 scalar.
      params: float32.
      opt_state: of the optimizer, plateau schedule included.
      model_state: of the model, not trained by gradient; `{}` where there is none.
      ema: running average of `params`; None where none is kept.
      key: of the run, a typed key; never changes. All randomness of step n comes from `fold_in(key, n)`.
    """

    step: Any
    params: Params
    opt_state: Any
    model_state: ModelState
    ema: Params | None
    key: Any

    @property
    def best_params(self) -> Params:
        """The average where one is kept: what evaluation and inference use."""
        return self.params if self.ema is None else self.ema


def run_keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of a run: of its initial parameters, and of its steps (`TrainState.key`)."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    return init_key, step_key


def _create(
    task: Task, optimizer: optax.GradientTransformation, keep_ema: bool, init_key: jax.Array, step_key: jax.Array
) -> TrainState:
    """A fresh state with its arrays still in their boxes; optimizer sums and average get boxes like the parameters'."""
    params, model_state = task.init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        model_state=model_state,
        ema=jax.tree.map(jnp.copy, params) if keep_ema else None,
        key=step_key,
    )


def abstract_state(task: Task, optimizer: optax.GradientTransformation, keep_ema: bool) -> TrainState:
    """Shapes, dtypes and boxes of a task's state; computes nothing and needs no memory."""
    # The keys are made inside: on a mesh of devices that are not here nothing can be computed, not even a key.
    return jax.eval_shape(lambda: _create(task, optimizer, keep_ema, *run_keys(0)))


def state_shardings(boxed: TrainState, mesh: Mesh, rules: ShardingRules) -> TrainState:
    """A `NamedSharding` for each array of `abstract_state`'s result.

    Raises:
      UserError: see `param_shardings`.
    """
    return param_shardings(boxed, mesh, rules)


def with_shardings(boxed: TrainState, shardings: TrainState) -> TrainState:
    """The abstract state without boxes, each array told where it lives: what a checkpoint is restored into."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), unbox(boxed), shardings
    )


def init_state(
    task: Task, optimizer: optax.GradientTransformation, keep_ema: bool, seed: int, shardings: TrainState
) -> TrainState:
    """A fresh state on the mesh, each device computing its own shards; the same values on every mesh."""
    create = jax.jit(lambda keys: unbox(_create(task, optimizer, keep_ema, *keys)), out_shardings=shardings)
    return create(run_keys(seed))
