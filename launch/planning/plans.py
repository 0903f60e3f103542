"""How a plan is made: a stage's training step or the sampler, compiled, and what would make it fit."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

import jax.numpy as jnp

from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.nn.attention import CacheLayout
from dalle_jax.training.config import MeshConfig
from launch.planning.collectives import Collective
from launch.planning.flops import FlopCount
from launch.planning.measure import Measurement, measure
from launch.planning.programs import Target, sampling_targets, training_target
from launch.planning.proposals import Proposal, propose, propose_sampling
from launch.planning.record import CacheRow, Change, Plan
from launch.planning.roofline import Roofline, days, roofline
from launch.planning.topologies import Topology, fit_topology, mesh_flags
from launch.run.config import RunConfig


def plan_training(config: str, run: RunConfig, stage: str, topology: Topology, given: Collection[str] = ()) -> Plan:
    """Compiles one stage's training step.

    Args:
      config: its name, for the table.
      run: the config.
      stage: `codec`, `decoder` or `clip`.
      topology: where it is to run.
      given: see `fit_topology`.

    Raises:
      UserError: the chips do not allow the mesh that is given; batch or parameters do not divide over the mesh; the
        compiler is not installed.
    """
    mesh, notes = _mesh(run.mesh, topology, given)
    devices = topology.devices()
    target, train = training_target(run, stage, mesh, topology, devices)
    traced, flops = target.traced()
    measured, _ = measure(target, traced)
    seconds = _roofline(target, measured, flops.passes)
    plan = _plan(
        config,
        target,
        measured=measured,
        flops=flops.total,
        seconds=seconds,
        batch_size=train.batch_size,
        num_steps=train.num_steps,
        notes=notes,
    )
    if flops.unknown_loops or measured.unknown_loops:
        plan = dataclasses.replace(plan, notes=(*notes, "loops of unknown length are counted once"))
    if not plan.fits:
        proposal = propose(
            run, stage, mesh=mesh, target=target, traced=traced, peak_bytes=measured.peak_bytes, devices=devices
        )
        if proposal is not None:
            changed, _ = training_target(proposal.run, stage, proposal.mesh, topology, devices)
            plan = dataclasses.replace(plan, change=_change(proposal, measure(changed, changed.traced()[0])[0]))
    best, worst = reversed(topology.family.published_mfu)
    return dataclasses.replace(
        plan,
        days_at_bound=train.num_steps / seconds.steps_a_day if seconds else None,
        days_published=(
            days(train.num_steps, target.useful_flops, topology, best),
            days(train.num_steps, target.useful_flops, topology, worst),
        ),
    )


def plan_sampling(
    config: str, run: RunConfig, topology: Topology, num_samples: int, given: Collection[str] = ()
) -> Plan:
    """Compiles the two programs that sample `num_samples` images of one caption; see `plan_training`."""
    assert run.decoder is not None
    mesh, notes = _mesh(run.mesh, topology, given)
    model, devices = run.decoder.model, topology.devices()
    target, measured, count = _sampled(run, mesh, topology, devices, num_samples)
    flops = count.total / model.image_length
    # One token of every image: the loop over positions is all that the program does.
    token = dataclasses.replace(
        measured,
        traffic_bytes=measured.traffic_bytes / model.image_length,
        transfers=tuple(_share(transfer, model.image_length) for transfer in measured.transfers),
    )
    seconds = _roofline(target, token, count.passes / model.image_length)
    plan = _plan(
        config,
        target,
        measured=token,
        flops=flops,
        seconds=seconds,
        batch_size=num_samples,
        num_steps=model.image_length,
        notes=notes,
    )
    plan = dataclasses.replace(plan, stage="sampling", caches=cache_rows(model))
    if plan.fits:
        return plan
    proposal = propose_sampling(run, mesh, target, measured.peak_bytes, num_samples, devices)
    if proposal is None:
        return plan
    _, again, _ = _sampled(run, proposal.mesh, topology, devices, proposal.candidates)
    return dataclasses.replace(plan, change=_change(proposal, again))


def _sampled(
    run: RunConfig, mesh: MeshConfig, topology: Topology, devices: Sequence[Any], candidates: int
) -> tuple[Target, Measurement, FlopCount]:
    """The sampling of so many images at once, compiled, and its FLOPs; the caption's program where that is refused."""
    prefill, sampling = sampling_targets(run, mesh, topology, devices, candidates)
    measured, compiled = measure(prefill, prefill.traced()[0])
    if compiled is None:
        return prefill, measured, FlopCount(0.0)
    target = sampling(compiled)
    traced, flops = target.traced()
    return target, measure(target, traced)[0], flops


def _change(proposal: Proposal, measured: Measurement) -> Change:
    return Change(proposal.flags, proposal.estimated_bytes, measured.peak_bytes if measured.accepted else 0)


def cache_rows(config: DecoderConfig) -> tuple[CacheRow, ...]:
    """Caches of one image by attention pattern, the largest first."""
    rows = []
    position = 2 * config.num_heads * config.head_dim * jnp.dtype(config.dtype).itemsize
    for pattern in set(config.schedule):
        layers = config.schedule.count(pattern)
        layout = CacheLayout(pattern, config.grid)
        rows.append(
            CacheRow(
                pattern,
                layers,
                layout.slots,
                layers * layout.slots * position,
                layers * layout.slots_read * position,
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.kept))


def _mesh(config: MeshConfig, topology: Topology, given: Collection[str]) -> tuple[MeshConfig, tuple[str, ...]]:
    mesh = fit_topology(config, topology, given)
    flags = " ".join(mesh_flags(config, mesh))
    return mesh, (f"the config's mesh does not fit these chips; planned with {flags}",) if flags else ()


def _share(transfer: Collective, steps: int) -> Collective:
    return dataclasses.replace(
        transfer,
        count=math.ceil(transfer.count / steps),
        within=transfer.within / steps,
        between=transfer.between / steps,
    )


def _roofline(target: Target, measured: Measurement, flops: float) -> Roofline | None:
    if not measured.accepted:
        return None
    return roofline(target.topology, target.mesh, flops, measured.traffic_bytes, measured.transfers)


def _plan(
    config: str,
    target: Target,
    measured: Measurement,
    flops: float,
    seconds: Roofline | None,
    batch_size: int,
    num_steps: int,
    notes: tuple[str, ...],
) -> Plan:
    shape: Any = tuple(target.mesh.shape.values())
    return Plan(
        config=config,
        stage=target.name,
        topology=target.topology.name,
        chips=target.topology.num_chips,
        mesh=shape,
        notes=notes,
        batch_size=batch_size,
        num_steps=num_steps,
        parameters=target.parameters,
        state_bytes=target.state_bytes,
        peak_bytes=measured.peak_bytes,
        memory_bytes=target.topology.chip.memory_bytes,
        accepted=measured.accepted,
        useful_flops=target.useful_flops,
        formula=target.formula,
        executed_flops=flops,
        transfers=measured.transfers,
        traffic_bytes=measured.traffic_bytes,
        seconds=seconds,
        days_at_bound=None,
        days_published=None,
        compile_seconds=measured.compile_seconds,
    )
