"""Real training steps on eight CPU devices: what they send, what they would need, what would make them fit."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from configs import clip, codec_dalle, decoder_1b, decoder_12b
from dalle_jax.config import from_config_dict
from dalle_jax.nn.transformer import Remat
from dalle_jax.training.config import MeshConfig
from launch.planning import measure
from launch.planning.collectives import collectives
from launch.planning.families import FAMILIES
from launch.planning.hlo import parse
from launch.planning.plans import cache_rows
from launch.planning.programs import training_target
from launch.planning.proposals import SHARE, propose, saved_bytes, with_remat
from launch.planning.topologies import Topology
from launch.run_config import RunConfig


def topology(memory_bytes=16 * 2**30):
    """Eight chips with as much memory each."""
    family = FAMILIES["v5e"]
    chip = dataclasses.replace(family.chip, memory_bytes=memory_bytes)
    return Topology("v5e-8", dataclasses.replace(family, chip=chip), (2, 4))


def run_of(module, arg="tiny"):
    return from_config_dict(RunConfig, module.get_config(arg))


def target_of(run, stage, mesh):
    return training_target(run, stage, mesh, topology(), jax.devices())[0]


@pytest.fixture(scope="module")
def decoder():
    """The tiny decoder of the published schedule on a mesh of data alone: config, mesh, target and traced step."""
    run, mesh = run_of(decoder_1b), MeshConfig(data=8)
    target = target_of(run, "decoder", mesh)
    return run, mesh, target, *target.traced()


def test_collectives_of_the_tiny_decoder(decoder):
    """All that travels is each gradient, once: 2 (n - 1) / n of the parameters' bytes.

    And a little more: the gradient of a position's embedding crosses before it is summed into its row's and column's.
    """
    _, _, target, traced, _ = decoder
    rows = collectives(parse(target.compile(traced).as_text()), target.mesh)
    assert {row.axes for row in rows} == {("data",)}
    (reduced,) = [row for row in rows if row.kind == "all-reduce"]
    assert 1 <= reduced.within / (2 * 7 / 8 * 4 * target.parameters) < 1.05
    assert sum(row.within for row in rows) == pytest.approx(reduced.within, rel=0.02)
    assert not any(row.between for row in rows)


def test_collectives_of_the_tiny_clip():
    """Weights that are split over `fsdp` are gathered for use; gradients cross `data` too."""
    target = target_of(run_of(clip), "clip", MeshConfig(data=2, fsdp=4))
    rows = collectives(parse(target.compile(target.traced()[0]).as_text()), target.mesh)
    gathered = sum(row.within for row in rows if row.kind == "all-gather" and row.axes == ("fsdp",))
    assert gathered > 3 / 4 * 4 * target.parameters / 2
    assert sum(row.within for row in rows if "data" in row.axes) > 4 * target.parameters / 4


def test_recomputation_of_the_tiny_decoder(decoder):
    """Costs a third of the FLOPs at the most, and keeps less; nothing of unknown length is counted."""
    run, mesh, _, _, flops = decoder
    _, plain = target_of(with_remat(run, "decoder", Remat.NONE), "decoder", mesh).traced()
    assert flops.unknown_loops == plain.unknown_loops == 0
    assert plain.total < flops.total < 4 / 3 * plain.total


def shapes(jaxpr):
    """Of every array of a program and of the programs inside of it."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars if hasattr(variable.aval, "shape"))
        for value in equation.params.values():
            for item in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from shapes(inner)


def test_no_array_is_text_and_image_squared(decoder):
    run, _, _, traced, _ = decoder
    length = run.decoder.model.text_length + run.decoder.model.image_length
    found = list(shapes(traced.jaxpr.jaxpr))
    assert any(length in shape for shape in found), "the walk sees the stream"
    assert not [shape for shape in found if shape.count(length) > 1]


def test_every_stage_has_a_program():
    """The codec's batch has pictures; nothing need be trained or read for a plan."""
    target = target_of(run_of(codec_dalle), "codec", MeshConfig(data=8))
    _, flops = target.traced()
    assert target.parameters > 0 and target.useful_flops > 0 and target.formula.startswith("Three times the forward")
    assert 0.8 < flops.total / target.useful_flops < 1.2


# What would make it fit


def proposed(decoder, *, memory, temporary, mesh=None):
    """The proposal for the tiny decoder where a step needs `temporary` bytes beside its state, of `memory` usable."""
    run, first_mesh, target, traced, _ = decoder
    train = dataclasses.replace(run.decoder.train, batch_size=64)
    run = dataclasses.replace(run, decoder=dataclasses.replace(run.decoder, train=train))
    small = dataclasses.replace(target, topology=topology(int(memory / SHARE)))
    return propose(run, "decoder", mesh or first_mesh, small, traced, target.state_bytes + temporary, jax.devices())


def test_a_large_state_is_split_further(decoder):
    state = decoder[2].state_bytes
    proposal = proposed(decoder, memory=state, temporary=state // 3)
    assert proposal.flags == ("--config.mesh.data=4", "--config.mesh.fsdp=2")
    assert (proposal.mesh.data, proposal.mesh.fsdp) == (4, 2)
    split = training_target(proposal.run, "decoder", proposal.mesh, topology(), jax.devices())[0].state_bytes
    assert proposal.estimated_bytes == split + state // 3


def test_a_large_batch_is_cut(decoder):
    """By eight, since less does not free enough; with room for one sum of gradients."""
    state, parameters = decoder[2].state_bytes, decoder[2].parameters
    proposal = proposed(decoder, memory=int(3.2 * state), temporary=16 * state)
    assert proposal.flags == ("--config.decoder.train.micro_batches=8",)
    assert proposal.run.decoder.train.micro_batches == 8
    assert proposal.estimated_bytes == state + 16 * state // 8 + 4 * parameters // 8


def test_there_may_be_nothing_to_propose(decoder):
    assert proposed(decoder, memory=1000, temporary=1000) is None


def test_recomputation_is_proposed_last(decoder):
    """Where neither mesh nor batch can be cut further; the estimate is without what the layers no longer keep."""
    keeping, mesh = with_remat(decoder[0], "decoder", Remat.NONE), MeshConfig(data=1, fsdp=8)
    target = target_of(keeping, "decoder", mesh)
    traced, _ = target.traced()
    saved = (saved_bytes(traced.jaxpr) - saved_bytes(decoder[3].jaxpr)) // 8
    assert saved > 0
    small = dataclasses.replace(target, topology=topology(int((target.state_bytes + 2000) / SHARE)))
    peak = target.state_bytes + saved + 1000
    proposal = propose(keeping, "decoder", mesh, small, traced, peak, jax.devices())
    assert proposal.flags == ("--config.decoder.model.remat=full",)
    assert proposal.run.decoder.model.remat is Remat.FULL
    assert proposal.estimated_bytes == target.state_bytes + 1000


def test_the_compiler_says_how_much_it_would_have_needed(monkeypatch):
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.50G) exceeds"
    )

    def refuse(traced):
        raise RuntimeError(f"{message} available HBM (15.75G).")

    found, compiled = measure.measure(SimpleNamespace(compile=refuse), None)
    assert compiled is None and not found.accepted and found.peak_bytes == 16.5 * 2**30

    def fail(traced):
        raise RuntimeError("INTERNAL: something else")

    with pytest.raises(RuntimeError, match="something else"):
        measure.measure(SimpleNamespace(compile=fail), None)


def test_caches_of_the_published_decoder():
    """Two of 3968 bfloat16 a position and layer (shared/JAX.md's full cache is 1.3 GB); a column is read alone."""
    rows = {row.pattern: row for row in cache_rows(run_of(decoder_12b, "").decoder.model)}
    assert {name: row.layers for name, row in rows.items()} == {"row": 47, "column": 16, "conv": 1}
    assert rows["row"].kept == rows["row"].read == 47 * 32 * 2 * 3968 * 2
    assert rows["column"].kept == 16 * 1024 * 2 * 3968 * 2 and rows["column"].read == rows["column"].kept // 32
    assert rows["conv"].positions < 1024 // 4
