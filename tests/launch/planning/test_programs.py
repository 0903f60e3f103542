"""Real training steps on eight CPU devices: what they send, what they would need, what would make them fit."""

import dataclasses
from types import SimpleNamespace

import jax
import pytest

from configs import clip, codec_dalle, decoder_1b, decoder_12b
from dalle_jax.config import from_config_dict
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig
from launch.planning import measure, plans, proposals
from launch.planning.collectives import collectives
from launch.planning.families import FAMILIES
from launch.planning.flops import FlopCount
from launch.planning.hlo import parse
from launch.planning.measure import Measurement
from launch.planning.plans import cache_rows, plan_sampling
from launch.planning.programs import sampling_targets, training_target
from launch.planning.proposals import SHARE, propose, propose_sampling, saved_bytes, with_remat
from launch.planning.topologies import Topology
from launch.run.config import RunConfig


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
    mesh = MeshConfig(data=8)
    run = dataclasses.replace(run_of(decoder_1b), mesh=mesh)
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
    """The codec's batch has images; nothing need be trained or read for a plan."""
    target = target_of(run_of(codec_dalle), "codec", MeshConfig(data=8))
    _, flops = target.traced()
    assert target.parameters > 0 and target.useful_flops > 0 and target.formula.startswith("Three times the forward")
    assert 0.8 < flops.total / target.useful_flops < 1.2


# What would make it fit


def proposed(decoder, *, memory, temporary, own=None):
    """The proposal for the tiny decoder where a step needs `temporary` bytes beside its state, of `memory` usable.

    `own` is the config's mesh, where another one was fitted for it.
    """
    run, mesh, target, traced, _ = decoder
    train = dataclasses.replace(run.decoder.train, batch_size=64)
    run = dataclasses.replace(run, mesh=own or mesh, decoder=dataclasses.replace(run.decoder, train=train))
    small = dataclasses.replace(target, topology=topology(int(memory / SHARE)))
    return propose(run, "decoder", mesh, small, traced, target.state_bytes + temporary, jax.devices())


def test_a_large_state_is_split_further(decoder):
    state = decoder[2].state_bytes
    proposal = proposed(decoder, memory=state, temporary=state // 3)
    assert proposal.flags == ("--config.mesh.data=4", "--config.mesh.fsdp=2")
    assert (proposal.mesh.data, proposal.mesh.fsdp) == (4, 2)
    split = training_target(proposal.run, "decoder", proposal.mesh, topology(), jax.devices())[0].state_bytes
    assert proposal.estimated_bytes == split + state // 3


def test_the_state_is_split_before_the_batch_is_cut(decoder):
    """Two micro-batches would do here as well, and gather the weights twice."""
    state = decoder[2].state_bytes
    assert proposed(decoder, memory=int(1.25 * state), temporary=state // 3).flags[-1] == "--config.mesh.fsdp=2"


def test_flags_are_all_that_the_config_lacks(decoder):
    """Also those of the mesh that was fitted for it, whether the proposal splits it further or not."""
    state, own = decoder[2].state_bytes, MeshConfig(fsdp=1, tensor=16, slices=2)
    finer = proposed(decoder, memory=state, temporary=state // 3, own=own).flags
    assert finer == tuple(f"--config.mesh.{part}" for part in ("data=4", "fsdp=2", "tensor=1", "slices=1"))
    cut = proposed(decoder, memory=int(3.2 * state), temporary=16 * state, own=own).flags
    fitted = tuple(f"--config.mesh.{part}" for part in ("data=8", "tensor=1", "slices=1"))
    assert cut == (*fitted, "--config.decoder.train.micro_batches=8")


def test_a_large_batch_is_cut(decoder):
    """By eight, since less does not free enough; with room for one sum of gradients."""
    state, parameters = decoder[2].state_bytes, decoder[2].parameters
    proposal = proposed(decoder, memory=int(3.2 * state), temporary=16 * state)
    assert proposal.flags == ("--config.decoder.train.micro_batches=8",)
    assert proposal.run.decoder.train.micro_batches == 8
    assert proposal.estimated_bytes == state + 16 * state // 8 + 4 * parameters // 8


def test_collectives_of_the_tiny_codec():
    """Its gradients, once each; metrics and the use of the codes are numbers beside them."""
    target = target_of(run_of(codec_dalle), "codec", MeshConfig(data=8))
    rows = collectives(parse(target.compile(target.traced()[0]).as_text()), target.mesh)
    assert {(row.kind, row.axes) for row in rows} == {("all-reduce", ("data",))}
    assert 1 <= sum(row.within for row in rows) / (2 * 7 / 8 * 4 * target.parameters) < 1.02


def test_there_may_be_nothing_to_propose(decoder):
    assert proposed(decoder, memory=1000, temporary=1000) is None


def test_recomputation_is_proposed_last(decoder):
    """Where neither mesh nor batch can be cut further; the estimate is without what the layers no longer keep."""
    mesh = MeshConfig(data=1, fsdp=8)
    keeping = dataclasses.replace(with_remat(decoder[0], "decoder", Remat.NONE), mesh=mesh)
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


@pytest.mark.parametrize(
    ("module", "arg", "stage"),
    [(decoder_1b, "tiny", "decoder"), (clip, "tiny", "clip"), (clip, "tiny_resnet", "clip"), (clip, "rn50", "clip")],
)
def test_what_is_proposed_is_a_key_of_the_config(module, arg, stage):
    config = module.get_config(arg)
    run = from_config_dict(RunConfig, config)
    flags = proposals._flags(run, stage, Remat.FULL, MeshConfig(data=2, fsdp=4), 4)
    assert sum(".remat=" in flag for flag in flags) == (2 if stage == "clip" else 1)
    for flag in flags:
        value = config
        for key in flag.removeprefix("--config.").split("=")[0].split("."):
            value = value[key]


@pytest.fixture(scope="module")
def drawing():
    """Config and program of the tiny decoder that draws 64 images at once, eight on a device."""
    run = dataclasses.replace(run_of(decoder_1b), mesh=MeshConfig(data=8))
    target, _ = sampling_targets(run, run.mesh, topology(), jax.devices(), 64)
    return run, dataclasses.replace(target, name="sampling")


def proposed_drawing(drawing, *, memory, temporary, name="sampling"):
    """As `proposed`."""
    run, target = drawing
    small = dataclasses.replace(target, name=name, topology=topology(int(memory / SHARE) + 1))
    return propose_sampling(run, run.mesh, small, target.state_bytes + temporary, 64, jax.devices())


def test_fewer_pictures_are_drawn_at_once(drawing):
    """By four here; not fewer than one a device."""
    state = drawing[1].state_bytes
    proposal = proposed_drawing(drawing, memory=5 * state, temporary=16 * state)
    assert (proposal.flags, proposal.candidates) == (("--num_samples=16",), 16)
    assert proposal.estimated_bytes == 5 * state
    assert proposed_drawing(drawing, memory=2 * state, temporary=16 * state) is None


def test_large_weights_of_a_drawing_are_split_further(drawing):
    state = drawing[1].state_bytes
    proposal = proposed_drawing(drawing, memory=int(0.8 * state), temporary=state // 8)
    assert proposal.flags == ("--config.mesh.data=4", "--config.mesh.fsdp=2")
    assert (proposal.mesh.data, proposal.mesh.fsdp, proposal.candidates) == (4, 2, 64)


def test_the_program_of_the_caption_draws_none(drawing):
    state = drawing[1].state_bytes
    assert proposed_drawing(drawing, memory=5 * state, temporary=16 * state, name="prefill") is None


def test_a_drawing_that_does_not_fit_is_compiled_once_more(drawing, monkeypatch):
    run, target = drawing
    run = dataclasses.replace(run, mesh=MeshConfig(data=8, slices=2))
    tried = []

    def drawn(run, mesh, topology, devices, candidates):
        tried.append(candidates)
        measured = Measurement(True, target.state_bytes + candidates * target.state_bytes, 1.0)
        return dataclasses.replace(target, topology=topology), measured, FlopCount(1e9)

    monkeypatch.setattr(plans, "_sampled", drawn)
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices())
    plan = plan_sampling("x", run, topology(int(40 * target.state_bytes / SHARE)), 64)
    assert tried == [64, 32] and not plan.fits
    assert plan.change.flags == ("--config.mesh.slices=1", "--num_samples=32")
    assert plan.change.estimated_bytes == plan.change.measured_bytes == 33 * target.state_bytes
    assert plan.notes == ("the config's mesh does not fit these chips; planned with --config.mesh.slices=1",)
    tried.clear()
    assert plan_sampling("x", run, topology(100 * target.state_bytes), 64).change is None and tried == [64]


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
