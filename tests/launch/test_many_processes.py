"""Real processes: what they compute together is what one computes alone, and they end together."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dalle_jax.training.distributed import HEARTBEAT
from launch.processes import Group
from tests.launch import many

pytestmark = pytest.mark.entry

ROOT = Path(__file__).parents[2]


def together(count: int, devices: int, *arguments: str) -> tuple[int, list[str]]:
    """Runs `many.py` as several processes; returns the exit code and all lines."""
    lines: list[str] = []
    environment = {HEARTBEAT: "30", "PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    command = ["python", "-m", "tests.launch.many", *arguments]
    group = Group(command, count, devices, environment, lambda i, line: lines.append(f"[{i}] {line}"))
    return group.wait(), lines


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """In this process, on its eight devices."""
    assert jax.device_count() == 8
    return many.facts(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(("count", "devices"), [(2, 4), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_several_processes_are_one(alone, tmp_path, count, devices):
    code, lines = together(count, devices, str(tmp_path / "run"))
    assert code == 0, lines
    (found,) = [line.split("FACTS ", 1)[1] for line in lines if "FACTS" in line]
    found = json.loads(found)
    assert found["batches"] == alone["batches"], "bit for bit"
    for name in ("encoded", "tokens", "indices"):
        assert found[name] == alone[name], name
    for name in ("losses", "scores"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-5, err_msg=name)
    # One writer: each row once, each picture once.
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert [path.name for path in (tmp_path / "run" / "previews").iterdir()] == ["step_0000002.png"]


def test_processes_that_disagree_are_named():
    code, lines = together(2, 1, "disagree")
    assert code == 2, lines
    errors = [line for line in lines if "error: " in line]
    assert len(errors) == 2 and not [line for line in lines if "Traceback" in line]
    assert "process 1 (" in errors[0] and "has another config than process 0 (" in errors[0]
    assert "optimizer.learning_rate (0.002 there, 0.001 here)" in errors[0]
