"""`launch.plan` as a person starts it: its refusals, and its JSON."""

import importlib.util
import json

import pytest

from launch.planning.record import DERIVED, read_plan

pytestmark = pytest.mark.entry

TINY = "--config=configs/decoder_1b.py:tiny"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([TINY], ["no topology given", "--topology=v5e-256"]),
        (["--topology=v5e-4"], ["no config given"]),
        ([TINY, "--topology=v6a-4"], ["--topology=v6a-4", "unknown chip 'v6a'", "did you mean 'v6e'"]),
        ([TINY, "--topology=v5e-200"], ["no slice of 200 chips", "v5e-256"]),
        ([TINY, "--topology=v5e-16", "--config.mesh.fsdp=300"], ["--config.mesh.fsdp=300 does not fit", "16 chips"]),
        ([TINY, "--topology=2xv5e-4", "--config.mesh.data=3"], ["--config.mesh.data=3", "a multiple of its slices, 2"]),
        ([TINY, "--topology=v5e-16", "--config.mesh.fsdp=300", "--mode=generate"], ["--config.mesh.fsdp=300"]),
        ([TINY, "--topology=v5e-4", "--mode=draw"], ["mode", "draw"]),
        ([TINY, "--topology=v5e-4", "--stages=decodr"], ["--stages", "'decodr'"]),
        (["--config=configs/clip.py:tiny", "--topology=v5e-4", "--mode=generate"], ["a config with a decoder"]),
    ],
)
def test_refusals(scripts, arguments, parts):
    """Found before anything is compiled: they need no compiler."""
    ended = scripts("plan", *arguments)
    assert ended.code == 2, ended
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and all(part in line for part in parts), line


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="plans need the extra `tpu`")
def test_json(scripts):
    ended = scripts("plan", TINY, "--topology=v5e-4", "--config.mesh.fsdp=2", "--json")
    assert ended.code == 0, ended
    (found,) = json.loads(ended.out)
    plan = read_plan(found, "plan")
    assert plan.config == "configs/decoder_1b.py:tiny --config.mesh.fsdp=2" and plan.mesh == (2, 2, 1)
    assert {name: found[name] for name in DERIVED} == {name: getattr(plan, name) for name in DERIVED}
    assert plan.fits and plan.bound and plan.steps_a_day > 1 and plan.executed_over_useful >= 1
