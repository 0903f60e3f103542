"""A task's training step as a workload: the program of the loop, on one batch again and again."""

from collections.abc import Mapping

import jax
import numpy as np

from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules
from dalle_jax.training.program import build_step
from dalle_jax.training.task import Task
from launch.benchmarks.workload import Workload, size_of

OPTIMIZER = OptimizerConfig(learning_rate=5e-4, b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=0.2)


def repeated_step(
    task: Task, batch: Mapping[str, np.ndarray], batch_size: int, items: float, micro_batches: int = 1
) -> Workload:
    """One update with AdamW on one device; a run returns the loss.

    Args:
      task: what is trained.
      batch: on the host; `task.prepare` runs once, outside of what is timed.
      batch_size: of it.
      items: what it holds, in the row's unit.
      micro_batches: see `TrainConfig`.
    """
    config = TrainConfig(batch_size, num_steps=1_000_000, optimizer=OPTIMIZER, micro_batches=micro_batches)
    mesh, rules = make_mesh(MeshConfig(), jax.devices()[:1]), ShardingRules()
    with jax.set_mesh(mesh), rules.context():
        program = build_step(task, config, mesh, rules)
        state = program.init(seed=0)
        prepared = task.prepare(jax.device_put(dict(batch), program.batch_sharding))

    def run() -> jax.Array:
        nonlocal state  # donated to each step
        with jax.set_mesh(mesh), rules.context():
            state, metrics = program.step(state, prepared)
        return metrics["loss"]

    # AdamW reads each parameter and its two sums, and writes them.
    traffic = 2 * size_of((state.params, state.opt_state))
    return Workload(run, flops=task.step_flops(batch_size), bytes=traffic, items=items)
