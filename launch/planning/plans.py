"""How a plan is made: a stage's training step or the sampler, compiled, and what would make it fit."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.nn.attention import CacheLayout
from dalle_jax.training.config import MeshConfig
from launch.planning.collectives import Collective
from launch.planning.measure import Measurement, measure
from launch.planning.programs import Target, sampling_targets, training_target
from launch.planning.proposals import SHARE, propose
from launch.planning.record import CacheRow, Change, Plan
from launch.planning.roofline import Roofline, days, roofline
from launch.planning.topologies import Topology, fit_mesh
from launch.run_config import RunConfig


def plan_training(config: str, run: RunConfig, stage: str, topology: Topology) -> Plan:
    """Compiles one stage's training step.

    Args:
      config: its name, for the table.
      run: the config.
      stage: `codec`, `decoder` or `clip`.
      topology: where it is to run.

    Raises:
      UserError: batch or parameters do not divide over the mesh; the compiler is not installed.
    """
    devices = topology.devices()
    mesh, notes = _mesh(run.mesh, topology)
    target, train = training_target(run, stage, mesh, topology, devices)
    traced, flops = target.traced()
    measured, _ = measure(target, traced)
    change = None
    if not measured.accepted or measured.peak_bytes > SHARE * topology.chip.memory_bytes:
        proposal = propose(run, stage, mesh, target, traced, measured.peak_bytes, devices)
        if proposal is not None:
            changed, _ = training_target(proposal.run, stage, proposal.mesh, topology, devices)
            again, _ = measure(changed, changed.traced()[0])
            change = Change(proposal.flags, proposal.estimated_bytes, again.peak_bytes if again.accepted else 0)
    seconds = _roofline(target, measured, flops.total)
    plan = _plan(config, target, measured, flops.total, seconds, train.batch_size, train.num_steps, notes)
    if flops.unknown_loops or measured.unknown_loops:
        plan = dataclasses.replace(plan, notes=(*notes, "loops of unknown length are counted once"))
    best, worst = reversed(topology.family.published_mfu)
    return dataclasses.replace(
        plan,
        change=change,
        days_at_bound=train.num_steps / seconds.steps_a_day if seconds else None,
        days_published=(
            days(train.num_steps, target.useful_flops, topology, best),
            days(train.num_steps, target.useful_flops, topology, worst),
        ),
    )


def plan_sampling(config: str, run: RunConfig, topology: Topology, num_samples: int) -> Plan:
    """Compiles the two programs that draw `num_samples` pictures of one caption; see `plan_training`."""
    assert run.decoder is not None
    model, devices = run.decoder.model, topology.devices()
    mesh, notes = _mesh(run.mesh, topology)
    prefill, drawing = sampling_targets(run, mesh, topology, devices, num_samples)
    measured, compiled = measure(prefill, prefill.traced()[0])
    target = prefill
    flops = 0.0
    if compiled is not None:
        target = drawing(compiled)
        traced, count = target.traced()
        flops = count.total / model.image_length
        measured, _ = measure(target, traced)
    # One token of every picture: the loop over positions is all that the program does.
    token = dataclasses.replace(
        measured,
        traffic_bytes=measured.traffic_bytes / model.image_length,
        transfers=tuple(_share(transfer, model.image_length) for transfer in measured.transfers),
    )
    seconds = _roofline(target, token, flops)
    plan = _plan(config, target, token, flops, seconds, num_samples, model.image_length, notes)
    return dataclasses.replace(plan, stage="sampling", caches=cache_rows(model))


def cache_rows(config: DecoderConfig) -> tuple[CacheRow, ...]:
    """Caches of one picture by attention pattern, the largest first."""
    rows = []
    position = 2 * config.num_heads * config.head_dim * jnp.dtype(config.dtype).itemsize
    for pattern in set(config.schedule):
        layers = config.schedule.count(pattern)
        layout = CacheLayout(pattern, config.grid_size, config.grid_size, config.conv_kernel)
        rows.append(
            CacheRow(
                pattern.value,
                layers,
                layout.slots,
                layers * layout.slots * position,
                layers * layout.slots_read * position,
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.kept))


def _mesh(config: MeshConfig, topology: Topology) -> tuple[MeshConfig, tuple[str, ...]]:
    mesh = fit_mesh(config, topology)
    names = [name for name in ("data", "fsdp", "tensor") if getattr(mesh, name) != getattr(config, name)]
    if not names:
        return mesh, ()
    flags = " ".join(f"--config.mesh.{name}={getattr(mesh, name)}" for name in names)
    return mesh, (f"the config's mesh does not fit these chips; planned with {flags}",)


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
