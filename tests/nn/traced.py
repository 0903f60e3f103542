"""Training steps as traced programs, for tests of what they compute in which dtype."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.training.config import MeshConfig, TrainConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules
from dalle_jax.training.program import build_step
from dalle_jax.training.task import Task
from launch.planning.families import FAMILIES
from launch.planning.flops import inner_programs
from launch.planning.programs import training_target
from launch.planning.topologies import Topology
from launch.run.config import RunConfig


def equations(program: Any) -> Iterator[Any]:
    """Every equation of a traced program and of the programs inside it: loops, branches, gradients."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        for inner in inner_programs(equation.params):
            yield from equations(inner)


def traced_stage(run: RunConfig, stage: str) -> Any:
    """The step of a stage as `launch.train` runs it; no array is made."""
    topology = Topology("v5e-1", FAMILIES["v5e"], (1, 1))
    target, _ = training_target(run, stage, MeshConfig(), topology, jax.devices()[:1])
    return target.traced()[0].jaxpr


def traced_task(task: Task, config: TrainConfig, shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> Any:
    """The step of a task at a batch of these shapes and dtypes."""
    mesh, rules = make_mesh(MeshConfig(), jax.devices()[:1]), ShardingRules()
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for name, (shape, dtype) in shapes.items()}
    with jax.set_mesh(mesh), rules.context():
        program = build_step(task, config, mesh, rules)
        return program.step.trace(program.abstract, batch).jaxpr
