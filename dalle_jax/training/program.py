"""The compiled training step with everything it stands on: what the loop runs, benchmarks time and plans compile."""

import dataclasses

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from dalle_jax.training.config import TrainConfig
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, check_batch
from dalle_jax.training.state import TrainState, abstract_state, init_state, state_shardings, with_shardings
from dalle_jax.training.step import compile_step, make_train_step
from dalle_jax.training.task import Task


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A task's step on a mesh. Used inside `jax.set_mesh(mesh)` and `rules.context()`.

    Attributes:
      task: what is trained.
      config: how.
      optimizer: of the config.
      boxed: the abstract state, see `abstract_state`.
      shardings: where each array of the state lies.
      batch_sharding: where batches lie.
      step: jitted; compiles at its first call, or for devices that are not here by `step.trace(...).lower().compile()`.
    """

    task: Task
    config: TrainConfig
    optimizer: optax.GradientTransformationExtraArgs
    boxed: TrainState
    shardings: TrainState
    batch_sharding: NamedSharding
    step: jax.stages.Wrapped

    @property
    def abstract(self) -> TrainState:
        """Shapes, dtypes and places of the state."""
        return with_shardings(self.boxed, self.shardings)

    @property
    def num_parameters(self) -> int:
        """What the optimizer trains."""
        return sum(x.size for x in jax.tree.leaves(self.boxed.params))

    def init(self, seed: int) -> TrainState:
        """A fresh state on the mesh."""
        return init_state(self.task, self.optimizer, self.config.ema_decay is not None, seed, self.shardings)


def build_step(task: Task, config: TrainConfig, mesh: Mesh, rules: ShardingRules) -> StepProgram:
    """Makes a task's step for a mesh; computes nothing.

    Raises:
      UserError: batch or parameters do not divide over the mesh (see `check_batch`, `param_shardings`).
    """
    check_batch(config.batch_size, config.micro_batches, mesh, rules)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    boxed = abstract_state(task, optimizer, config.ema_decay is not None)
    shardings = state_shardings(boxed, mesh, rules)
    sharding = batch_sharding(mesh, rules)
    step = compile_step(make_train_step(task, config, optimizer, sharding), shardings)
    return StepProgram(
        task=task,
        config=config,
        optimizer=optimizer,
        boxed=boxed,
        shardings=shardings,
        batch_sharding=sharding,
        step=step,
    )
