"""Plans by the TPU compiler itself, for a slice of four chips that nobody has: what the whole road prints is real."""

import dataclasses
import importlib.util

import pytest

from configs import clip, decoder_1b
from dalle_jax.config import from_config_dict
from dalle_jax.training.config import MeshConfig
from launch.planning.plans import plan_sampling, plan_training
from launch.planning.report import table
from launch.planning.topologies import find_topology
from launch.run.config import RunConfig

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("plans need the extra `tpu`; `bash launch/test.sh --parity` installs it", allow_module_level=True)


def run_of(module, mesh=None):
    run = from_config_dict(RunConfig, module.get_config("tiny"))
    return run if mesh is None else dataclasses.replace(run, mesh=mesh)


@pytest.fixture(scope="module")
def v5e():
    return find_topology("v5e-4")


@pytest.fixture(scope="module")
def decoder(v5e):
    return plan_training("configs/decoder_1b.py:tiny", run_of(decoder_1b, MeshConfig(data=4)), "decoder", v5e)


def test_memory_of_a_decoder(decoder):
    """The state alone is known by hand: float32 parameters, their two moments and their average, on every device."""
    assert decoder.fits and decoder.chips == 4
    assert decoder.state_bytes == pytest.approx(4 * 4 * decoder.parameters, rel=0.01)
    assert decoder.state_bytes < decoder.peak_bytes < decoder.memory_bytes


def test_transfers_of_a_decoder(decoder):
    """Data parallel: every gradient crosses, and nothing else that is as large."""
    gradient = 2 * 3 / 4 * 4 * decoder.parameters
    assert gradient <= sum(transfer.within + transfer.between for transfer in decoder.transfers) <= 1.15 * gradient
    assert {transfer.axes for transfer in decoder.transfers} == {("data",)}
    assert all(transfer.between == 0 for transfer in decoder.transfers)


def test_time_and_flops_of_a_decoder(decoder):
    assert decoder.executed_flops / decoder.useful_flops >= 1.0
    # It is of float32, which takes six passes of the chip's units.
    assert decoder.seconds.compute == pytest.approx(6 * decoder.executed_flops / 4 / 197e12)
    assert "bound by" in table(decoder)


def test_another_stage(v5e):
    plan = plan_training("configs/clip.py:tiny", run_of(clip), "clip", v5e)
    assert plan.fits and plan.traffic_bytes > 0
    # Useful is three times the forward pass; the first layer's gradient by the image is not computed.
    assert 0.9 < plan.executed_flops / plan.useful_flops < 1.1


def test_drawing(v5e):
    plan = plan_sampling("configs/decoder_1b.py:tiny", run_of(decoder_1b), v5e, num_samples=16)
    assert plan.fits and plan.stage == "sampling" and plan.batch_size == 16
    assert {row.pattern for row in plan.caches} == {"row", "column", "conv"}
