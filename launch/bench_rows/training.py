"""A task's training step as a workload: the program of the loop, on one batch again and again."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.mesh import make_mesh
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.sharding import ShardingRules, batch_sharding
from dalle_jax.training.state import abstract_state, init_state, state_shardings
from dalle_jax.training.step import compile_step, make_train_step
from dalle_jax.training.task import Task

OPTIMIZER = OptimizerConfig(learning_rate=5e-4, b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=0.2)


def repeated_step(
    task: Task, batch: Mapping[str, np.ndarray], batch_size: int, micro_batches: int = 1
) -> Callable[[], jax.Array]:
    """A function that makes one update with AdamW on one device and returns the loss.

    Args:
      task: what is trained.
      batch: on the host; `task.prepare` runs once, outside of what is timed.
      batch_size: of it.
      micro_batches: see `TrainConfig`.
    """
    config = TrainConfig(batch_size, num_steps=1_000_000, optimizer=OPTIMIZER, micro_batches=micro_batches)
    mesh, rules = make_mesh(MeshConfig(), jax.devices()[:1]), ShardingRules()
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    with jax.set_mesh(mesh), rules.context():
        boxed = abstract_state(task, optimizer, keep_ema=False)
        shardings = state_shardings(boxed, mesh, rules)
        sharding = batch_sharding(mesh, rules)
        program = compile_step(make_train_step(task, config, optimizer, sharding), shardings)
        state = init_state(task, optimizer, False, 0, shardings)
        prepared = task.prepare(jax.device_put(dict(batch), sharding))

    def run() -> jax.Array:
        nonlocal state  # donated to each step
        with jax.set_mesh(mesh), rules.context():
            state, metrics = program(state, prepared)
        return metrics["loss"]

    return run
