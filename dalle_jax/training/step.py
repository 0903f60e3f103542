"""One training step: a pure function from state and batch to state and metrics."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from dalle_jax.training.config import TrainConfig
from dalle_jax.training.freezing import Freezing
from dalle_jax.training.optimizer import learning_rate
from dalle_jax.training.state import TrainState
from dalle_jax.training.task import Batch, HasExactGradients, Metrics, ModelState, Params, Task

_COMPILER_OPTIONS: dict[str, dict[str, bool | str]] = {
    # A weight is gathered whole and multiplied at once. The compiler would multiply each part as it comes, and where a
    # batch is split as finely as the weights, write and read every result as often as there are parts: of the decoder
    # of 1.3 billion on v5e-32, 3.6 times the memory traffic and 3.3 times the bytes sent.
    "tpu": {
        "xla_tpu_enable_windowed_einsum_for_all_gather": False,
        "xla_tpu_enable_windowed_einsum_for_reduce_scatter": False,
    }
}

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    task: Task,
    config: TrainConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    batch_sharding: NamedSharding | None = None,
) -> TrainStep:
    """Builds the step of a task, not yet compiled (see `compile_step`).

    Args:
      task: its `loss`, or its `gradients` where it is a `HasExactGradients`.
      config: `micro_batches`, `ema_decay`, `ema_every`, and the optimizer's for the reported rate.
      optimizer: of `make_optimizer`.
      batch_sharding: how batches lie on the mesh; None leaves it to the arrays.

    Returns:
      `train_step(state, batch) -> (state, metrics)`; metrics are float32 scalars: `loss`, what the task reports (means
      over micro-batches), `learning_rate`, `grad_norm` (of what is trained, before clipping; not finite where any
      gradient is not) and `param_norm` (of all, after the update).
    """

    freezing = Freezing.of(config.optimizer)
    platform = jax.default_backend() if batch_sharding is None else batch_sharding.mesh.devices.flat[0].platform

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        batch = _constrain(batch, batch_sharding)
        trained = freezing.trained(state.params)
        whole = functools.partial(freezing.whole, state.params)
        if isinstance(task, HasExactGradients):
            grads, (model_state, metrics) = task.gradients(
                trained,
                state.model_state,
                batch,
                key=key,
                step=state.step,
                micro_batches=config.micro_batches,
                whole=whole,
            )
        else:
            micro_batches = _cut(batch, config.micro_batches)
            grads, (model_state, metrics) = _mean_gradients(
                task,
                state,
                trained=trained,
                whole=whole,
                micro_batches=micro_batches,
                key=key,
                sharding=batch_sharding,
                unroll=platform == "cpu",
            )
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained, value=metrics["loss"])
        params = task.constrain(whole(optax.apply_updates(trained, updates)))
        params = whole(freezing.trained(params))  # what is frozen is not constrained either
        metrics = metrics | {
            "learning_rate": learning_rate(config.optimizer, config.num_steps, state.step, opt_state),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(params),
        }
        step = state.step + 1
        state = state.replace(
            step=step,
            params=params,
            opt_state=opt_state,
            model_state=model_state,
            ema=_average(config, freezing, step, state.ema, params),
        )
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return train_step


def compile_step(train_step: TrainStep, shardings: TrainState) -> jax.stages.Wrapped:
    """Jits a step: the state keeps its shardings, and its memory is handed on to the next one."""
    platform = jax.tree.leaves(shardings)[0].mesh.devices.flat[0].platform
    return jax.jit(
        train_step,
        in_shardings=(shardings, None),
        out_shardings=(shardings, None),
        donate_argnums=0,
        compiler_options=_COMPILER_OPTIONS.get(platform),
    )


def _mean_gradients(
    task: Task,
    state: TrainState,
    trained: Params,
    whole: Callable[[Params], Params],
    micro_batches: Batch,
    key: jax.Array,
    sharding: NamedSharding | None,
    unroll: bool,
) -> tuple[Params, tuple[ModelState, Metrics]]:
    """Gradients and metrics averaged over micro-batches; the model state goes from each to the next.

    Args:
      trained: the part of the parameters that is differentiated.
      whole: gives all parameters of it.
      micro_batches: arrays of [B / count, count, ...].
      unroll: compile a copy for each. XLA's CPU compiler makes a convolution's gradient inside a loop tens of times
        slower; elsewhere a loop compiles once and bounds memory.
    """
    count = jax.tree.leaves(micro_batches)[0].shape[1]

    def loss(trained, model_state, batch, i):
        value, (model_state, metrics) = task.loss(
            whole(trained), model_state, batch, key=jax.random.fold_in(key, i), step=state.step
        )
        return value, (model_state, {"loss": value} | metrics)

    def one(model_state, i):
        batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), micro_batches)
        grads, (model_state, metrics) = jax.grad(loss, has_aux=True)(
            trained, model_state, _constrain(batch, sharding), i
        )
        return (grads, metrics), model_state

    def add(carry, i):
        total, model_state = carry
        value, model_state = one(model_state, i)
        return (jax.tree.map(jnp.add, total, value), model_state), None

    if unroll or count == 1:
        carry = one(state.model_state, 0)
        for i in range(1, count):
            carry, _ = add(carry, i)
    else:
        # All of them inside: with one before the loop, two micro-batches would be a loop of one round, which the
        # compiler takes apart, and might hold the activations of both at once.
        sums, _ = jax.eval_shape(one, state.model_state, 0)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)
        carry, _ = jax.lax.scan(add, (zeros, state.model_state), jnp.arange(count))
    total, model_state = carry
    grads, metrics = jax.tree.map(lambda x: x / count, total) if count > 1 else total
    return grads, (model_state, metrics)


def _cut(batch: Batch, count: int) -> Batch:
    """[B, ...] -> [B / count, count, ...]: micro-batch i is every count-th row, so that no row leaves its device."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), batch)


def _constrain(batch: Batch, sharding: NamedSharding | None) -> Batch:
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


def _average(
    config: TrainConfig, freezing: Freezing, step: jax.Array, ema: Params | None, params: Params
) -> Params | None:
    """The average after update `step` (counted from 1): moved at multiples of `ema_every`, else left."""
    decay = config.ema_decay
    if ema is None or decay is None:
        return None
    rest = 1 - decay

    def move(ema):
        averages, values = freezing.trained(ema), freezing.trained(params)
        return freezing.whole(ema, jax.tree.map(lambda x, value: decay * x + rest * value, averages, values))

    if config.ema_every == 1:
        return move(ema)
    return jax.lax.cond(step % config.ema_every == 0, move, lambda ema: ema, ema)
