"""Rows and images: written once each, whatever happened before."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from dalle_jax.errors import UserError
from dalle_jax.training.telemetry.clock import Clock
from dalle_jax.training.telemetry.rows import Reporter
from dalle_jax.training.telemetry.writers import JsonLines, TensorBoard, Terminal, WeightsAndBiases, open_writers


def read_events(directory):
    """The events of a TensorBoard folder; a record is its length, a checksum, the event, a checksum."""
    events = []
    for file in sorted(directory.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return events


def test_json_lines_forget_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, 0)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": float(step)})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # Cut short by a crash.
    second = JsonLines(path, 2)
    second.scalars(3, {"loss": float("inf")})
    second.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": None}]


def test_tensorboard(tmp_path):
    writer = TensorBoard(tmp_path, 4)
    writer.scalars(5, {"loss": 0.5, "eval/loss": 0.25})
    writer.image(5, "preview", np.full((3, 4, 3), 200, np.uint8))
    writer.close()
    events = read_events(tmp_path)
    assert any(e.session_log.status == event_pb2.SessionLog.START and e.step == 5 for e in events)
    values = {value.tag: value for e in events for value in e.summary.value}
    assert values["loss"].simple_value == 0.5 and values["eval/loss"].simple_value == 0.25
    assert (values["preview"].image.height, values["preview"].image.width) == (3, 4)


def test_terminal_prints_plain_lines(capsys):
    writer = Terminal("codec", 0, 7210)
    writer.scalars(10, {"loss": 1.5, "learning_rate": 1e-3, "grad_norm": 2.0, "steps_per_second": 2.0, "other": 9.0})
    writer.scalars(10, {"eval/psnr": 21.5})
    writer.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("codec 10/7210  loss 1.5") and first.endswith("1h00m left") and "other" not in first
    assert second == "codec 10/7210  eval/psnr 21.5"


def test_terminal_draws_a_bar_where_there_is_one(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    writer = Terminal("codec", 20, 100)
    writer.scalars(50, {"loss": 1.5, "steps_per_second": 2.0})
    writer.close()
    assert "50/100" in capsys.readouterr().err


def test_weights_and_biases_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        open_writers("codec", tmp_path, 0, 10, wandb="project")
    logged = []
    run = types.SimpleNamespace(
        log=lambda row, step: logged.append((step, row)), finish=lambda: logged.append("finish")
    )
    stand_in = types.SimpleNamespace(init=lambda **arguments: run, Image=lambda picture: picture.shape)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    writer = WeightsAndBiases("project", "codec", tmp_path)
    writer.scalars(3, {"loss": 1.0})
    writer.image(3, "preview", np.zeros((2, 2, 3), np.uint8))
    writer.close()
    assert logged == [(3, {"loss": 1.0}), (3, {"preview": (2, 2, 3)}), "finish"]


def metrics_of(loss):
    values = {"loss": loss, "learning_rate": 0.1, "grad_norm": 1.0, "param_norm": 2.0}
    return {name: jnp.float32(value) for name, value in values.items()}


def make_reporter(window=None, log_every=3):
    written = []
    reporter = Reporter(log_every, 100, Clock(), lambda *row: written.append(row), lambda: "none", window or {})
    return reporter, written


def test_rows_are_means_one_step_late():
    reporter, written = make_reporter()
    for step in range(1, 4):
        reporter.add(step, metrics_of(float(step)))
    assert not written  # The devices have a step to do while the row is fetched.
    reporter.add(4, metrics_of(9.0))
    ((step, row, steps, seconds),) = written
    assert (step, row["loss"], row["learning_rate"]) == (3, 2.0, pytest.approx(0.1))
    assert steps == 3 and sum(seconds.values()) > 0
    reporter.flush()
    resumed, later = make_reporter(json.loads(json.dumps(reporter.progress())))
    resumed.add(5, metrics_of(5.0))
    resumed.add(6, metrics_of(1.0))
    resumed.flush()
    assert later[0][1]["loss"] == 5.0  # Of steps 4, 5 and 6, across the restart.


def test_first_step_that_is_not_finite_is_named():
    reporter, _ = make_reporter(log_every=0)
    for step, loss in [(1, 1.0), (2, float("inf")), (3, float("nan"))]:
        reporter.add(step, metrics_of(loss))
    with pytest.raises(UserError, match="stopped at step 2: loss is inf; none"):
        reporter.flush()


def test_steps_are_checked_where_no_rows_are_written():
    reporter, written = make_reporter(log_every=0)
    with pytest.raises(UserError, match="stopped at step 60"):
        for step in range(1, 200):
            reporter.add(step, metrics_of(float("nan") if step == 60 else 1.0))
    assert step == 101 and not written
