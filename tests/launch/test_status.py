"""The answer to "is it healthy, how long yet?", from the folder of a run in every state."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

import launch.run.startup
from clip_jax.objectives import Objective
from dalle_jax.config import FORMAT_VERSION, write_json
from dalle_jax.errors import UserError
from dalle_jax.training.telemetry.attempts import FAILED, FINISHED, STOPPED, Attempt, Save
from dalle_jax.training.telemetry.clock import Kind
from launch.monitoring import run_health
from launch.monitoring.health import Verdict, diverging, judge, read_health
from launch.run.startup import FILE, Starting, read_starting, starting
from tests.launch.conftest import ROOT, environment

NOW = 1_000_000.0


def start(**changes):
    """A start that has made 500 of 1000 steps in 260 seconds, and said so three seconds ago."""
    seconds = dict.fromkeys([kind.value for kind in Kind], 0.0) | {"start": 10.0, "step": 250.0}
    fields = dict(number=1, stage="decoder", began=NOW - 263, beat=NOW - 3, moved=NOW - 4, doing="step", first_step=0,
                  step=500, num_steps=1000, batch_size=8, seconds=seconds,
                  saves=[Save(400, NOW - 60, seconds | {"step": 200.0})])  # fmt: skip
    return Attempt(**(fields | changes))


FALLING = [7.0 - 0.1 * i for i in range(40)]


def verdict(found, losses=FALLING, share=0.01, now=NOW):
    return judge(found, losses, share, 2.0, 400, now)


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({}, Verdict.HEALTHY, "steps are made"),
        ({"step": 0, "doing": "compile", "moved": NOW - 600}, Verdict.HEALTHY, "in 'compile' for 10m00s"),
        ({"state": FINISHED}, Verdict.FINISHED, "all 1,000 steps"),
        ({"state": STOPPED, "reason": "asked to stop"}, Verdict.STOPPED, "asked to stop; start again to go on from"),
        ({"state": FAILED, "reason": "the disk is full"}, Verdict.STOPPED, "the disk is full; start again"),
        ({"beat": NOW - 400}, Verdict.STOPPED, "no sign of life for 6m40s: killed"),
        ({"moved": NOW - 400, "doing": "input"}, Verdict.STALLED, "in 'input' for 6m40s after step 500"),
        ({"moved": NOW - 2000, "doing": "compile"}, Verdict.STALLED, "in 'compile'"),
    ],
)
def test_verdicts(changes, expected, words):
    found, reason = verdict(start(**changes))
    assert found is expected and words in reason


def test_patience_grows_with_the_step():
    slow = start(moved=NOW - 400)
    assert judge(slow, [], None, 1 / 60, 400, NOW)[0] is Verdict.HEALTHY  # a step takes a minute


def test_slow_input():
    found, reason = verdict(start(), share=0.34)
    assert found is Verdict.SLOW_INPUT and reason.startswith("34% of the time")


@pytest.mark.parametrize(
    ("losses", "diverges"),
    [
        (FALLING, False),
        ([*FALLING, *(3.0 + 0.3 * i for i in range(12))], True),
        ([*FALLING, None], True),
        ([3.0 + 0.2 * (-1) ** i for i in range(200)], False),  # noise around a level
        ([*FALLING, *([3.0, 3.3] * 20)], False),  # a little above the lowest
        ([*FALLING, 9.0, *[3.0] * 20], False),  # a spike that is over
        ([1.0, 2.0, 3.0], False),  # too short to tell
        ([1.0 + 0.1 * i for i in range(40)], True),  # never fell
    ],
)
def test_divergence(losses, diverges):
    assert bool(diverging(losses)) == diverges
    assert (verdict(start(), losses)[0] is Verdict.DIVERGING) == diverges


def write(folder, *starts, rows=(), steps=()):
    for i, found in enumerate(starts):
        (folder / "starts").mkdir(parents=True, exist_ok=True)
        (folder / "starts" / f"{i + 1:04d}.json").write_text(json.dumps(dataclasses.asdict(found)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in steps:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)


def row(step, **columns):
    # Ten steps take five seconds, and every hundredth step an evaluation takes five more.
    wall = step / 2 + 5 * (step // 100)
    return {"step": step, "loss": 7.0 - step / 200, "time_in_data": 0.02, "wall_seconds": wall, **columns}


def test_time_left_counts_what_comes_between_the_steps(tmp_path):
    write(tmp_path, start(), rows=[row(step, bad_samples=3.0) for step in range(10, 501, 10)], steps=[300, 400])
    found = read_health(tmp_path, NOW)
    assert found.steps_per_second == pytest.approx(190 / 105, rel=0.02)
    assert found.seconds_left == pytest.approx(500 * 105 / 190, rel=0.02)
    assert (found.checkpoint, found.checkpoint_age, found.beat_age) == (400, 60.0, 3.0)
    assert (found.loss, found.bad_samples, found.starts, found.warning) == (4.5, 3, 1, "")
    assert found.loss_before > found.loss_now > found.loss
    assert (found.memory_in_use, found.host_memory_in_use) == (None, None)
    lines = run_health.describe(found)
    assert not any("memory" in line for line in lines)
    assert lines[0].startswith("decoder: healthy  step 500 of 1,000 (50%)  1.81 steps/s  4m3")
    assert "loss 4.5 (falling" in lines[1] and "waiting for data 2%" in lines[1] and "bad samples 3" in lines[1]
    assert "checkpoint of step 400, 1m00s ago" in lines[2]


def test_memory_of_the_last_row(tmp_path):
    device, peak, host = 9.75 * 2**30, 11.2 * 2**30, 6.4 * 2**30
    rows = [row(10, memory_in_use=1.0, memory_peak=1.0, host_memory_in_use=1.0)]
    rows += [row(20, memory_in_use=device, memory_peak=peak, host_memory_in_use=host)]
    write(tmp_path, start(), rows=rows)
    text = "\n".join(run_health.describe(read_health(tmp_path, NOW)))
    assert "memory 9.8 GiB (peak 11.2) of a device, 6.4 GiB of the host" in text


def test_rows_of_an_earlier_start_do_not_slow_the_forecast(tmp_path):
    earlier = start(began=NOW - 90_000, beat=NOW - 89_000)
    rows = [row(step) for step in range(10, 401, 10)]
    later = [row(step) | {"wall_seconds": 50_000 + step / 4} for step in range(410, 501, 10)]
    write(tmp_path, earlier, start(first_step=400), rows=rows + later)
    assert read_health(tmp_path, NOW).steps_per_second == pytest.approx(4.0)


def test_the_penalty_of_a_codec_is_no_divergence_and_its_alarm_is_told(tmp_path):
    rows = [
        row(step) | {"loss": 1.0 + step / 100, "reconstruction": 1.0 / step, "eval/usage_collapsed": 0.0}
        for step in range(10, 501, 10)
    ]
    rows.append({"step": 500, "eval/usage_collapsed": 1.0, "eval/codebook_usage": 0.01})
    write(tmp_path, start(), rows=rows)
    found = read_health(tmp_path, NOW)
    assert found.verdict is Verdict.HEALTHY and found.watched == "reconstruction"
    assert "uses 1.0% of its codes" in run_health.describe(found)[-1]


def write_run(folder, *stages):
    folder.mkdir()
    config = {"format_version": 1, "commit": "x", "config": dict.fromkeys(stages, {"train": {}}) | {"seed": 0}}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_run_of_several_stages(tmp_path):
    run = epath.Path(tmp_path / "run")
    write_run(run, "codec", "decoder")

    def answer(now=NOW):
        return run_health.whole(*run_health.find(run, now), now)

    failed = "codec, decoder not begun: it failed before its first stage; start again"
    assert answer() == (Verdict.STOPPED, failed)
    write(run / "codec", start(stage="codec", state=FINISHED, step=1000))
    assert answer() == (Verdict.HEALTHY, "codec is done and decoder is about to begin")
    assert answer(NOW + 3600)[0] is Verdict.STOPPED
    write(run / "decoder", start(), rows=[row(490), row(500)])
    found, words = answer()
    assert found is Verdict.HEALTHY and words.startswith("decoder at step 500 of 1,000, ") and " left: " in words
    write(run / "decoder", start(state=FINISHED))
    assert answer() == (Verdict.FINISHED, "all of codec, decoder is trained")


def test_a_run_before_its_first_stage(tmp_path):
    """Whether the folder holds a config yet or not."""
    run = epath.Path(tmp_path / "run")

    def answer(ready, now=NOW):
        write_json(run / FILE, Starting(began=NOW - 300, beat=NOW - 9, ready=ready))
        return run_health.whole(*run_health.find(run, now), now)

    reading = (Verdict.STARTING, "reading data and captions for 5m00s; no stage works yet")
    killed = (Verdict.STOPPED, "no sign of life for 1m49s before its first stage: killed, or failed; start again")
    assert answer(False) == reading and answer(False, NOW + 100) == killed
    run.rmtree()
    write_run(run, "codec", "decoder")
    assert answer(False) == reading and answer(False, NOW + 100) == killed
    assert answer(True, NOW + 100) == (Verdict.STARTING, "codec is about to begin")
    assert answer(True, NOW + 3600)[0] is Verdict.STOPPED
    write(run / "codec", start(stage="codec", beat=NOW - 5000))  # an earlier start, which died
    assert answer(False) == reading
    assert answer(False, NOW + 100)[1].startswith("codec at step 500 of 1,000")
    write(run / "codec", start(stage="codec"))
    assert answer(True)[0] is Verdict.HEALTHY


def test_a_start_says_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.run.startup, "BEAT_EVERY", 0.02)
    run, deadline = epath.Path(tmp_path / "runs" / "mine"), time.time() + 60

    def next_beat(after):
        while (found := read_starting(run)) is None or found.beat <= after:
            assert time.time() < deadline
        assert not found.ready
        return found.beat

    with pytest.raises(UserError), starting(run):
        next_beat(next_beat(0.0))
        raise UserError("no such data")
    assert not (tmp_path / "runs").exists()  # refused: as it was found
    with starting(run) as ready:
        ready()
        assert read_starting(run).ready
        write_run(epath.Path(run / "kept"))
    assert [path.name for path in run.iterdir()] == ["kept"]


def test_a_start_in_a_file_leaves_it_to_others_to_say_so(tmp_path):
    (tmp_path / "file").touch()
    with starting(epath.Path(tmp_path / "file")) as ready:
        ready()


@pytest.mark.entry
def test_of_a_starting_run(scripts, tmp_path):
    now = time.time()
    write_json(tmp_path / FILE, Starting(now - 65, now + 600, ready=False))  # the script may take its time to start
    ended = scripts("status", tmp_path)
    assert (ended.code, ended.err) == (0, "") and ended.out.startswith("starting: reading data and captions for ")
    assert json.loads(scripts("status", tmp_path, "--json").out)["verdict"] == "starting"


def test_a_run_on_the_codec_of_another_does_not_wait_for_its_own(tmp_path):
    sections = {"codec": {"train": {}}, "decoder": {"train": {}, "codec_from": "runs/base"}}
    write_json(tmp_path / "config.json", {"format_version": FORMAT_VERSION, "commit": "", "config": sections})
    write(epath.Path(tmp_path / "decoder"), start(state=FINISHED))
    found = run_health.find(epath.Path(tmp_path), NOW)
    assert run_health.whole(*found, NOW) == (Verdict.FINISHED, "all of decoder is trained")


@pytest.mark.entry
def test_of_a_finished_run(scripts, tiny_run):
    ended = scripts("status", tiny_run)
    assert ended.code == 0, ended
    first, *rest = ended.out.splitlines()
    assert first == "finished: all of codec, decoder, clip is trained"
    assert [line.split(":")[0] for line in rest if not line.startswith(" ")] == ["codec", "decoder", "clip"]
    report = json.loads(scripts("status", tiny_run, "--json").out)
    assert report["verdict"] == "finished" and report["stages"][1]["step"] == 2
    one = scripts("status", tiny_run / "decoder")
    assert one.code == 0 and one.out.startswith("finished: all of decoder")


@pytest.mark.entry
@pytest.mark.parametrize(
    ("arguments", "part"), [([], "name one work directory"), (["no/where"], "no/where/config.json is missing")]
)
def test_refusals(scripts, arguments, part):
    ended = scripts("status", *arguments)
    assert ended.code == 2 and part in ended.err and len(ended.err.splitlines()) == 1


def test_a_folder_of_the_efficiency_figure_names_its_runs(tmp_path):
    write_json(tmp_path / "config.json", {"format_version": FORMAT_VERSION, "commit": "", "config": {"clip": {}}})
    run = tmp_path / Objective.CONTRASTIVE.value / "rate_0.001_seed_0"
    (run / "starts").mkdir(parents=True)
    with pytest.raises(UserError, match="name one of its 1 runs .*rate_0.001_seed_0, say"):
        run_health.find(epath.Path(tmp_path), 0.0)


@pytest.mark.entry
def test_of_a_running_run_and_a_killed_one(scripts, tmp_path):
    command = [sys.executable, "-m", "tests.training.tiny_run", f"--workdir={tmp_path}", "--num_steps=2000000"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                time.sleep(0.1)
                if (tmp_path / "checkpoints" / "5").exists():
                    break
            found = read_health(tmp_path, time.time())
            # Steps of a few microseconds on a machine with other work: its input may be what it waits for.
            assert found is not None and found.verdict in (Verdict.HEALTHY, Verdict.SLOW_INPUT)
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
    assert read_health(tmp_path, time.time() + 120).verdict is Verdict.STOPPED
    (record,) = (tmp_path / "starts").glob("*.json")
    record.write_text(record.read_text().replace('"beat": 1', '"beat": '))  # as of long ago
    ended = scripts("status", tmp_path)
    assert ended.code == 3 and ended.out.startswith("stopped: tiny at step "), ended
    assert "no sign of life" in ended.out and "start again to go on from step" in ended.out
