"""What would make it fit: a finer mesh, micro-batches, recomputation, fewer images at once.

Estimated, for one compile to confirm.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from jax.extend import core

from dalle_jax.errors import UserError
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig
from launch.planning.flops import inner_programs
from launch.planning.programs import Target, sampling_targets, training_target
from launch.planning.topologies import mesh_flags
from launch.run.config import RunConfig

SHARE = 0.9
"""Of a chip's memory that a step may take: the codec, evaluation and the next batch live beside it."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A change of a config.

    Attributes:
      flags: that make it, all of them, of the config as it was.
      run: the changed config.
      mesh: the changed mesh.
      estimated_bytes: peak of one device.
      candidates: images sampled at once, where sampling is to fit.
    """

    flags: tuple[str, ...]
    run: RunConfig
    mesh: MeshConfig
    estimated_bytes: int
    candidates: int = 0


def propose(
    run: RunConfig, stage: str, mesh: MeshConfig, target: Target, traced: Any, peak_bytes: int, devices: Any
) -> Proposal | None:
    """The least change whose estimate fits, or None.

    In order of their price: splitting the state further costs transfers alone, micro-batches gather the weights once
    for each, recomputation costs a third of the FLOPs. The estimate: the state is exact; what the step needs beside it
    shrinks with the part of the batch in flight, less what a layer saves under the other policy, plus one sum of
    gradients where there are several parts.

    Args:
      run: the config that does not fit.
      stage: of it.
      mesh: its mesh on these devices.
      target: of it.
      traced: its program.
      peak_bytes: its measured peak.
      devices: of the topology.
    """
    memory = target.topology.chip.memory_bytes
    temporary = peak_bytes - target.state_bytes
    parts = math.prod(target.mesh.shape[axis] for axis in target.rules.batch)
    train = getattr(run, stage).train

    def state_of(finer: MeshConfig) -> int:
        return training_target(run, stage, finer, target.topology, devices)[0].state_bytes

    most = train.batch_size // parts if _divides(run, stage) else train.micro_batches
    meshes = list(_meshes(mesh, target, state_of))
    for remat in _policies(run, stage):
        changed = run if remat is None else with_remat(run, stage, remat)
        saved = (
            _difference(run, changed, stage=stage, mesh=mesh, target=target, traced=traced, devices=devices) // parts
        )
        for micro_batches in _doublings(train.micro_batches, most):
            sums = 4 * target.parameters // target.mesh.size if micro_batches > 1 else 0
            for finer, state in meshes:
                needed = state + (temporary - saved) * train.micro_batches // micro_batches + sums
                if needed <= SHARE * memory:
                    flags = _flags(run, stage, remat, finer, micro_batches)
                    return Proposal(flags, with_micro_batches(changed, stage, micro_batches), finer, int(needed))
    return None


def propose_sampling(
    run: RunConfig, mesh: MeshConfig, target: Target, peak_bytes: int, candidates: int, devices: Any
) -> Proposal | None:
    """The least change of sampling whose estimate fits, or None.

    Fewer images at once shrink all but the weights and cost only time; a finer mesh gathers the weights for every
    token. Where the caption's own program is what does not fit, only the mesh helps.

    Args:
      run: the config that does not fit.
      mesh: its mesh on these devices.
      target: the sampler, or the caption's program (`prefill`).
      peak_bytes: its measured peak.
      candidates: images sampled at once.
      devices: of the topology.
    """
    temporary = peak_bytes - target.state_bytes
    # `Dalle.generate` never samples one alone.
    least = max(math.prod(target.mesh.shape[axis] for axis in target.rules.batch), 2)
    counts = [candidates] if target.name == "prefill" else list(_halvings(candidates, least))

    def state_of(finer: MeshConfig) -> int:
        return sampling_targets(run, finer, target.topology, devices, candidates)[0].state_bytes

    for finer, state in _meshes(mesh, target, state_of):
        for count in counts:
            needed = state + temporary * count // candidates
            if needed <= SHARE * target.topology.chip.memory_bytes:
                fewer = () if count == candidates else (f"--num_samples={count}",)
                return Proposal((*mesh_flags(run.mesh, finer), *fewer), run, finer, needed, count)
    return None


def with_micro_batches(run: RunConfig, stage: str, count: int) -> RunConfig:
    """The run with another number of micro-batches in one stage."""
    section = getattr(run, stage)
    train = dataclasses.replace(section.train, micro_batches=count)
    return dataclasses.replace(run, **{stage: dataclasses.replace(section, train=train)})


def with_remat(run: RunConfig, stage: str, remat: Remat) -> RunConfig:
    """The run with another recomputation policy in every transformer of a stage."""
    section = getattr(run, stage)
    return dataclasses.replace(run, **{stage: dataclasses.replace(section, model=_replace_remat(section.model, remat))})


def _replace_remat(config: Any, remat: Remat) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "remat":
            changes["remat"] = remat
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _replace_remat(value, remat)
    return dataclasses.replace(config, **changes)


def _policies(run: RunConfig, stage: str) -> list[Remat | None]:
    """None, for the config's own, and full recomputation where there is a policy to change."""
    model = getattr(run, stage).model
    return [None] if _replace_remat(model, Remat.FULL) == model else [None, Remat.FULL]


def _meshes(
    mesh: MeshConfig, target: Target, state_of: Callable[[MeshConfig], int]
) -> Iterator[tuple[MeshConfig, int]]:
    """The mesh itself, then those that move devices from the data axis, which copies the state, to `fsdp`.

    Each with the bytes of its state; those over which a dimension does not divide are left out.
    """
    data, fsdp = target.mesh.shape["data"], target.mesh.shape["fsdp"]
    yield mesh, target.state_bytes
    while data % 2 == 0 and data > target.topology.slices:
        data, fsdp = data // 2, fsdp * 2
        finer = dataclasses.replace(mesh, data=data, fsdp=fsdp)
        try:
            state = state_of(finer)
        except UserError:
            continue
        yield finer, state


def _divides(run: RunConfig, stage: str) -> bool:
    """Whether a stage takes micro-batches: a ResNet wants the statistics of its whole batch."""
    return stage != "clip" or run.clip is None or run.clip.model.vision.resnet is None


def _doublings(first: int, most: int) -> Iterator[int]:
    count = first
    while count <= most and most % count == 0:
        yield count
        count *= 2


def _halvings(first: int, least: int) -> Iterator[int]:
    count = first
    yield count
    while count % (2 * least) == 0:
        count //= 2
        yield count


def _difference(
    run: RunConfig, changed: RunConfig, stage: str, mesh: MeshConfig, target: Target, traced: Any, devices: Any
) -> int:
    """Bytes over all devices that the forward pass no longer keeps for the backward pass."""
    if changed == run:
        return 0
    other, _ = training_target(changed, stage, mesh, target.topology, devices)
    return saved_bytes(traced.jaxpr) - saved_bytes(other.traced()[0].jaxpr)


def saved_bytes(program: core.ClosedJaxpr | core.Jaxpr) -> int:
    """What the loops of a program hand out of every round: for a training step, what layers keep for the backward pass.

    Gradients of stacked parameters leave loops too, but are the same under every policy.
    """
    total = 0
    for equation in _open(program).eqns:
        if equation.primitive.name == "scan":
            (body,) = map(_open, inner_programs(equation.params))
            # Versions of JAX count what is carried in different ways; what is stacked has one axis more outside.
            ends: Any = zip(equation.outvars, body.outvars, strict=True)
            stacked = [outer.aval for outer, inner in ends if outer.aval.ndim > inner.aval.ndim]
            total += sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in stacked)
        else:
            total += sum(map(saved_bytes, inner_programs(equation.params)))
    return total


def _open(program: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def _flags(run: RunConfig, stage: str, remat: Remat | None, mesh: MeshConfig, micro_batches: int) -> tuple[str, ...]:
    """All that turn the config, not the mesh that was fitted for it, into what is proposed."""
    flags = [*mesh_flags(run.mesh, mesh)]
    if micro_batches != getattr(run, stage).train.micro_batches:
        flags.append(f"--config.{stage}.train.micro_batches={micro_batches}")
    if remat is not None and stage == "clip":
        assert run.clip is not None
        vision = "transformer" if run.clip.model.vision.resnet is None else "resnet"
        flags += [
            f"--config.clip.model.{part}.remat={remat.value}" for part in (f"vision.{vision}", "text.transformer")
        ]
    elif remat is not None:
        flags.append(f"--config.{stage}.model.remat={remat.value}")
    return tuple(flags)
