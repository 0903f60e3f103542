"""The loop as a person meets it: killed and resumed, on another mesh, with a loss that is not a number."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from dalle_jax.errors import STALLED, UserError
from dalle_jax.training.checkpoints.reader import load_item, load_params
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.loop import train
from dalle_jax.training.parallel.preemption import Preempted
from dalle_jax.training.telemetry.attempts import account, read_attempts
from dalle_jax.training.telemetry.clock import Kind
from dalle_jax.training.telemetry.profiler import profiler
from dalle_jax.training.trees import named_leaves
from tests.training.test_metrics import read_events
from tests.training.tiny_run import TinyBatches, TinyTask, tiny_config

ROOT = Path(__file__).parents[2]
SPEEDS = ("_per_second", "time_in_data", "host_memory_in_use")
TIMES = ("seconds/", "wall_seconds", "goodput")


def tiny_train(workdir, config=None, task=None, batches=None, mesh=None, **arguments):
    return train(
        task or TinyTask(),
        config or tiny_config(),
        mesh_config=mesh or MeshConfig(),
        batches=batches or TinyBatches(),
        eval_batches=TinyBatches(seed=1),
        workdir=workdir,
        seed=7,
        devices=None if mesh else jax.devices()[:1],
        **arguments,
    )


def script(workdir, *arguments):
    command = [sys.executable, "-m", "tests.training.tiny_run", f"--workdir={workdir}", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def rows(workdir):
    """What was logged, without the speeds."""
    parsed = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in row.items() if not name.endswith(SPEEDS) and not name.startswith(TIMES)}
        for row in parsed
    ]


def assert_same_bits(a, b):
    a, b = named_leaves(a), named_leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        value, other = (jax.random.key_data(x) if name == "key" else x for x in (a[name], b[name]))
        assert np.asarray(value).tobytes() == np.asarray(other).tobytes(), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A whole run: its folder and its last state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, tiny_train(workdir)


def test_whole_run_leaves_what_it_says(uninterrupted):
    workdir, state = uninterrupted
    assert int(state.step) == 20
    assert saved_steps(workdir)[-1] == 20
    logged = {row["step"]: row for row in rows(workdir) if "loss" in row}
    assert list(logged) == [4, 8, 12, 16, 20]
    expected = {"loss", "inputs", "learning_rate", "grad_norm", "param_norm", "bad_samples", "captions_cut"}
    assert expected <= logged[20].keys()
    assert logged[20]["bad_samples/truncated"] == 2
    assert logged[20]["loss"] < logged[4]["loss"]
    assert [row["step"] for row in rows(workdir) if "eval/loss" in row] == [8, 16, 20]
    assert sorted(path.name for path in (workdir / "previews").iterdir()) == ["step_0000010.png", "step_0000020.png"]
    assert Image.open(workdir / "previews" / "step_0000010.png").size == (8, 8)
    assert {"mfu", "memory_peak"}.isdisjoint(logged[20])  # a CPU says neither
    speeds = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-2])
    assert 2**26 < speeds["host_memory_in_use"] < 2**36
    assert speeds["wall_seconds"] == pytest.approx(sum(speeds[f"seconds/{kind}"] for kind in Kind))
    assert speeds["goodput"] == pytest.approx(speeds["seconds/step"] / speeds["wall_seconds"])
    assert all(
        speeds[f"seconds/{kind}"] > 0 for kind in ("start", "compile", "step", "checkpoint", "evaluate", "preview")
    )
    assert speeds["seconds/lost"] == speeds["seconds/down"] == 0.0
    assert speeds["useful_flops_per_second"] == pytest.approx(6 * 16 * 2 * 8 * 16 * speeds["steps_per_second"])


def test_tensorboard_and_json_lines_hold_the_same_rows(uninterrupted):
    workdir, _ = uninterrupted
    lines = {}
    for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        step = row.pop("step")
        lines |= {(step, name): value for name, value in row.items() if not name.startswith(TIMES)}
    events = {
        (event.step, value.tag): value.simple_value
        for event in read_events(workdir / "tensorboard")
        for value in event.summary.value
        if value.HasField("simple_value") and not value.tag.startswith(TIMES)
    }
    assert lines.keys() == events.keys()
    assert list(lines.values()) == pytest.approx([events[key] for key in lines], rel=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole run in a process of its own."""
    workdir = tmp_path_factory.mktemp("process")
    assert script(workdir).returncode == 0
    return workdir


@pytest.mark.entry
@pytest.mark.parametrize("name, code", [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 0)])
def test_killed_and_resumed_is_the_uninterrupted_run(name, code, whole, tmp_path):
    broken = tmp_path / "broken"
    # Any step will do, after the first save or before it; a failing one is named by the assertion.
    step = int(np.random.default_rng().integers(3, 19))
    stopped = script(broken, f"--kill_at={step}", f"--signal={name}")
    assert stopped.returncode == code, (step, stopped.stderr)
    if name == "SIGTERM":
        assert saved_steps(broken)[-1] == step + 1
        assert f"stopped after step {step + 1} and saved" in stopped.stderr
    again = script(broken)
    assert again.returncode == 0
    check_account(broken, step if name == "SIGKILL" else None)
    assert again.stderr.splitlines()[-1].startswith("tiny: step 20 of 20 after ")
    assert_same_bits(load_params(whole, 20), load_params(broken, 20))
    for item in ("params", "optimizer"):
        assert_same_bits(load_item(whole, 20, item), load_item(broken, 20, item))
    assert rows(whole) == rows(broken), step


SAVES = (0, 5, 8, 10, 15, 16)  # every 5 steps, and those whose evaluation (every 8) is the best so far


def check_account(workdir, killed_at):
    """Both starts are on record, and their time sums to all that passed."""
    killed = killed_at is not None
    first, second = read_attempts(workdir)
    times = account([first, second])
    assert sum(times.values()) == pytest.approx(second.beat - first.began)
    assert (first.state, second.state) == ("running" if killed else "stopped", "finished")
    if killed:  # saved in the background: what was under way may be lost, what was before it is not
        saved = [step for step in SAVES if step <= killed_at]
        assert second.first_step in saved[-2:], killed_at
    else:
        assert second.first_step == max([0, *(save.step for save in first.saves)])
    assert times[Kind.DOWN] > 0 and (killed or times[Kind.LOST] == 0)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["starts"] == 2 and summary["seconds"]["step"] == pytest.approx(times[Kind.STEP])
    logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert logged["seconds/down"] == pytest.approx(times[Kind.DOWN])
    assert logged["wall_seconds"] > first.beat - first.began


@pytest.mark.entry
def test_a_run_that_hangs_is_ended_and_goes_on(whole, tmp_path):
    hung = script(tmp_path, "--hang_at=12", "--watchdog_seconds=4")
    assert hung.returncode == STALLED, hung.stderr
    assert "error: tiny: no step for 4 s" in hung.stderr and "tiny_run.py" in hung.stderr, "and where it hung"
    assert saved_steps(tmp_path)[-1] == 10
    assert script(tmp_path).returncode == 0
    assert_same_bits(load_params(whole, 20), load_params(tmp_path, 20))


def test_sigterm_in_this_process(tmp_path, uninterrupted):
    def at(n):
        if n == 6:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted) as stopped:
        tiny_train(tmp_path, batches=TinyBatches(at=at))
    assert stopped.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert saved_steps(tmp_path) == [5, 7]
    assert_same_bits(tiny_train(tmp_path), uninterrupted[1])
    assert rows(tmp_path) == rows(uninterrupted[0])


def test_an_evaluation_due_at_the_step_of_a_sigterm_is_made_at_the_next_start(tmp_path, uninterrupted):
    def at(n):
        if n == 7:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted):
        tiny_train(tmp_path, batches=TinyBatches(at=at))
    assert saved_steps(tmp_path) == [5, 8]
    assert not any("eval/loss" in row for row in rows(tmp_path)), "whoever asks to stop does not wait for it"

    def breaks(n):
        if n == 9:
            raise OSError("a start that comes no further")

    with pytest.raises(OSError):
        tiny_train(tmp_path, batches=TinyBatches(at=breaks))
    tiny_train(tmp_path)
    assert rows(tmp_path) == rows(uninterrupted[0])


def test_sigterm_at_the_last_step_leaves_nothing_out(tmp_path, uninterrupted):
    def at(n):
        if n == 19:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted):  # a stage may come after this one, and is not to begin
        tiny_train(tmp_path, batches=TinyBatches(at=at))
    assert rows(tmp_path) == rows(uninterrupted[0])
    assert [start.state for start in read_attempts(tmp_path)] == ["finished"], "no later start would say so"
    assert_same_bits(tiny_train(tmp_path), uninterrupted[1])


def test_finished_run_is_left_alone(uninterrupted):
    workdir, state = uninterrupted
    before = rows(workdir)
    assert_same_bits(tiny_train(workdir), state)
    assert rows(workdir) == before


def test_killed_behind_its_last_checkpoint_it_is_finished_by_the_next_start(tmp_path):
    tiny_train(tmp_path, tiny_config(4))
    before, file = rows(tmp_path), tmp_path / "starts" / "0001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "running"}))
    for _ in range(2):
        tiny_train(tmp_path, tiny_config(4))
        assert [start.state for start in read_attempts(tmp_path)] == ["running", "finished"]
    assert rows(tmp_path) == before
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 4


def test_goes_on_longer_and_on_another_mesh(tmp_path, uninterrupted):
    tiny_train(tmp_path, tiny_config(10))
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [4, 8, 10]  # The last step gets a row.
    state = tiny_train(tmp_path, mesh=MeshConfig(2, 2, 2))
    assert state.params["in"]["kernel"].sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    for name, value in named_leaves(state.params).items():
        # Ten steps on eight devices after ten on one: other orders of float32 sums, and Adam behind them.
        np.testing.assert_allclose(value, named_leaves(uninterrupted[1].params)[name], rtol=1e-3, atol=1e-4)


def test_non_finite_loss_stops_before_it_is_saved(tmp_path):
    with pytest.raises(UserError) as error:
        tiny_train(tmp_path, task=TinyTask(bad_step=14))
    assert "stopped at step 14: grad_norm is nan, loss is nan" in str(error.value)
    assert "checkpoint is of step 10" in str(error.value)
    restored = load_params(tmp_path)
    assert restored.step == 10
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.params))
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [4, 8, 12]


@pytest.mark.entry
def test_non_finite_loss_is_one_line_and_a_code(tmp_path):
    done = script(tmp_path, "--bad_step=3")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: training stopped at step 3: grad_norm is nan")
    assert "Traceback" not in done.stderr


def test_an_average_too_slow_for_the_run_is_said(tmp_path, caplog):
    tiny_train(tmp_path / "slow", tiny_config(2, ema_decay=0.75, ema_every=1))
    assert "average of the parameters, which is what is evaluated and loaded, will still be 56% random" in (caplog.text)
    caplog.clear()
    tiny_train(tmp_path / "fast", tiny_config(2, ema_decay=0.2, ema_every=1))
    assert "average" not in caplog.text


def test_init_from_another_run(tmp_path, uninterrupted):
    source = load_params(uninterrupted[0])
    state = tiny_train(tmp_path / "tuned", tiny_config(0), init_from=uninterrupted[0])
    assert_same_bits(state.params, source.params)
    assert_same_bits(state.ema, source.params)
    assert_same_bits(state.model_state, source.model_state)

    class Wider(TinyTask):
        def init(self, key):
            params, model_state = super().init(key)
            params["norm"] = {"scale": np.ones(9, np.float32), "shift": np.ones(3, np.float32)}
            return params, model_state

    with pytest.raises(UserError) as error:
        tiny_train(tmp_path / "wider", task=Wider(), init_from=uninterrupted[0])
    assert "'norm/shift' is missing" in str(error.value)
    assert "'norm/scale' is (8,) and should be (9,)" in str(error.value)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        tiny_train(tmp_path / "none", init_from=tmp_path / "nowhere")


def test_nothing_moves_in_the_hot_path(tmp_path):
    class OnHost(TinyTask):
        calls = 0

        def prepare(self, batch):
            self.calls += 1
            return batch if self.calls == 1 else {"x": np.asarray(batch["x"])}

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        tiny_train(tmp_path, tiny_config(3), task=OnHost())


def test_profiler_window(tmp_path):
    tiny_train(tmp_path, tiny_config(4), profile_steps=(2, 3))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_the_trace_waits_for_the_devices_at_both_ends(tmp_path, monkeypatch):
    did = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: did.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: did.append("stop"))
    monkeypatch.setattr("jax.block_until_ready", lambda state: did.append(f"state before {state}"))
    with profiler(epath.Path(tmp_path), (2, 3)) as before:
        for step in range(1, 6):
            before(step, step)
    assert did == ["state before 2", "start", "state before 4", "stop"]


def test_an_evaluation_of_no_batches_is_none(tmp_path):
    tiny_train(tmp_path, tiny_config(4, eval_every=2, eval_batches=0, preview_every=2))
    assert not any("eval/loss" in row for row in rows(tmp_path))
    assert len(list((tmp_path / "previews").iterdir())) == 2


def test_a_resumed_run_halves_and_averages_as_the_uninterrupted_one(tmp_path):
    """Stopped inside the plateau rule's window and right before a halving; no loss is ever a gain at this threshold."""
    config = tiny_config(12, checkpoint_every=1, log_every=1, eval_every=0, preview_every=0)
    rule = {"plateau_threshold": 0.99, "warmup_steps": 0, "halvings": 3}
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **rule))
    whole = tiny_train(tmp_path / "whole", config)
    rates = {row["step"]: row["learning_rate"] for row in rows(tmp_path / "whole")}
    halved = [step for step in range(2, 13) if rates[step] == rates[step - 1] / 2]
    assert len(halved) == 3

    class Stop(Exception):
        pass

    for stop in (halved[0] - 1, halved[1] - 2):

        def at(n, stop=stop):
            if n == stop:
                raise Stop

        broken = tmp_path / f"broken_{stop}"
        with pytest.raises(Stop):
            tiny_train(broken, config, batches=TinyBatches(at=at))
        assert saved_steps(broken)[-1] == stop
        resumed = tiny_train(broken, config)
        assert_same_bits(resumed, whole)
        assert {row["step"]: row["learning_rate"] for row in rows(broken)} == rates
