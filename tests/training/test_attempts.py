"""Where the time of a run went, from what its starts left on record."""

import dataclasses
import json
import random
import time

import pytest

from dalle_jax.errors import UserError
from dalle_jax.training.parallel.preemption import Preempted
from dalle_jax.training.telemetry import heartbeat as heartbeat_module
from dalle_jax.training.telemetry.attempts import (
    FAILED,
    FINISHED,
    STOPPED,
    Attempt,
    Save,
    account,
    duration,
    in_words,
    read_attempts,
    summary,
    utilisation,
)
from dalle_jax.training.telemetry.chips import chip_of, peak_flops
from dalle_jax.training.telemetry.clock import Clock, Kind
from dalle_jax.training.telemetry.heartbeat import Heartbeat
from tests.training.tiny_run import TinyTask, tiny_config

NONE = dict.fromkeys([kind.value for kind in Kind], 0.0)


def start(began, first_step, step, saves=(), **changes):
    """Ten seconds to start, then one a step, of which a tenth is input."""
    done = step - first_step

    def spent(steps):
        return NONE | {"start": 10.0, "step": 0.9 * steps, "input": 0.1 * steps}

    fields = dict(number=1, stage="tiny", began=began, beat=began + 10.0 + done, moved=began, doing="step",
                  first_step=first_step, step=step, num_steps=100, batch_size=4, seconds=spent(done),
                  saves=[Save(at, began + 10.0 + at - first_step, spent(at - first_step)) for at in saves])  # fmt: skip
    return Attempt(**(fields | changes))


def test_an_uninterrupted_start_is_all_kept():
    times = account([start(1000.0, 0, 100, state=FINISHED)])
    assert times[Kind.STEP] == pytest.approx(90.0) and times[Kind.START] == 10.0
    assert times[Kind.LOST] == times[Kind.DOWN] == 0.0


def test_what_came_after_the_checkpoint_is_lost():
    # Killed at step 37 with a checkpoint of 30, and started again a minute later.
    starts = [start(1000.0, 0, 37, saves=[10, 20, 30]), start(1107.0, 30, 100, saves=[100])]
    times = account(starts)
    assert times[Kind.LOST] == pytest.approx(7.0) and times[Kind.DOWN] == pytest.approx(60.0)
    assert times[Kind.START] == 20.0 and times[Kind.STEP] == pytest.approx(90.0)
    assert sum(times.values()) == pytest.approx(starts[-1].beat - 1000.0)


def test_going_back_behind_an_earlier_start_loses_that_one_whole():
    # The second start's checkpoints and the first one's newest were damaged: the third goes on from 20.
    starts = [
        start(0.0, 0, 37, saves=[10, 20, 30]),
        start(100.0, 30, 60, saves=[40, 50]),
        start(200.0, 20, 100),
    ]
    assert account(starts)[Kind.LOST] == pytest.approx(17.0 + 40.0)


def test_a_start_that_keeps_no_step_is_lost_with_its_beginning():
    times = account([start(0.0, 30, 39), start(50.0, 30, 100)])
    assert times[Kind.LOST] == pytest.approx(19.0) and times[Kind.START] == 10.0


def test_a_start_that_was_stopped_and_saved_loses_nothing():
    times = account([start(0.0, 0, 37, saves=[30, 37], state=STOPPED), start(100.0, 37, 100)])
    assert times[Kind.LOST] == 0.0 and times[Kind.DOWN] == pytest.approx(53.0)


def test_nothing_was_to_run_after_a_finished_start():
    times = account([start(0.0, 0, 50, saves=[50], state=FINISHED), start(1e6, 50, 100)])
    assert times[Kind.DOWN] == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_kinds_sum_to_the_wall_time(seed):
    rng = random.Random(seed)
    now, saved, starts = 0.0, [0], []
    for _ in range(rng.randint(1, 6)):
        first = rng.choice(saved)
        step = first + rng.randint(0, 40)
        saves = [at for at in range(first + 1, step + 1) if at % 7 == 0]
        starts.append(start(now, first, step, saves=saves))
        saved = [at for at in saved if at <= first] + saves
        now = starts[-1].beat + rng.uniform(0, 100)
    assert sum(account(starts).values()) == pytest.approx(starts[-1].beat - starts[0].began)


def test_mfu_is_useful_operations_over_the_peak():
    assert utilisation(2e12, 3.0, 60e12) == pytest.approx(0.1)
    assert utilisation(2e12, 3.0, None) is utilisation(0.0, 3.0, 60e12) is utilisation(2e12, None, 60e12) is None
    begun = start(0.0, 0, 50, step_flops=1e12, peak_flops=20e12)
    assert begun.mfu == pytest.approx(1e12 * (50 / 50.0) / 20e12)  # one second a step
    assert "MFU 0.050" in in_words([begun]) and "MFU n/a" in in_words([start(0.0, 0, 50)])


def test_chips():
    assert peak_flops(["TPU v5 lite"] * 4) == 4 * 197e12
    assert chip_of("TPU v5").name == "v5p"  # not the lite one, which begins alike
    assert chip_of("NVIDIA H100 80GB HBM3").flops == chip_of("NVIDIA H200 141GB").flops == 989.4e12
    assert peak_flops(["cpu"]) is peak_flops(["TPU v4", "cpu"]) is peak_flops([]) is None


def test_durations():
    assert [duration(x) for x in (12.4, 69.0, 7500.0, 273_600.0)] == ["12s", "1m09s", "2h05m", "3d04h"]


class Device:
    device_kind = "TPU v4"


def open_heartbeat(folder, clock, step=0):
    heartbeat = Heartbeat(folder, TinyTask(), tiny_config(), clock, [Device()] * 2)
    heartbeat.open(step)
    return heartbeat


def test_a_start_writes_signs_of_life_and_how_it_ended(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "dalle_jax")
    monkeypatch.setattr(heartbeat_module, "BEAT_EVERY", 0.01)
    with Clock() as clock, open_heartbeat(tmp_path, clock) as heartbeat:
        first = read_attempts(tmp_path)[0]
        assert (first.state, first.step, first.devices, first.peak_flops) == ("running", 0, 2, 2 * 275e12)
        clock.enter(Kind.STEP)
        heartbeat.moved_to(3)
        heartbeat.saved(2, [2])
        heartbeat.saved(3, [2, 3])
        heartbeat.saved(4, [3, 4])
        for _ in range(200):
            (seen,) = read_attempts(tmp_path)
            if seen.step == 3 and seen.beat > first.beat and seen.saves:
                break
            time.sleep(0.02)
        assert (seen.doing, seen.state, [save.step for save in seen.saves]) == ("step", "running", [3, 4])
    (ended,) = read_attempts(tmp_path)
    assert ended.state == FINISHED and sum(ended.seconds.values()) == pytest.approx(
        ended.beat - ended.began, abs=1e-6
    )  # Unix times have no finer steps
    said = json.loads((tmp_path / "summary.json").read_text())
    assert said["state"] == FINISHED and sum(said["seconds"].values()) == pytest.approx(said["wall_seconds"], abs=1e-6)
    assert caplog.messages[-1].startswith("tiny: step 3 of 20 after ")


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Preempted(), STOPPED, "asked to stop"),
        (UserError("the disk is full"), FAILED, "the disk is full"),
        (KeyError("x"), FAILED, "KeyError: 'x'"),
    ],
)
def test_how_a_start_ended(tmp_path, error, state, reason, caplog):
    caplog.set_level("INFO", "dalle_jax")
    with pytest.raises(type(error)), Clock() as clock, open_heartbeat(tmp_path, clock):
        raise error
    (ended,) = read_attempts(tmp_path)
    assert (ended.state, ended.reason) == (state, reason)
    assert bool(caplog.messages) == (state == STOPPED)  # an error has a line of its own


def test_a_later_start_counts_the_earlier_ones(tmp_path):
    (tmp_path / "starts").mkdir()
    earlier = start(time.time() - 1000.0, 0, 37, saves=[30])
    (tmp_path / "starts" / "0001.json").write_text(json.dumps(dataclasses.asdict(earlier)))
    (tmp_path / "starts" / "0002.json").write_text('{"cut')
    with Clock() as clock, open_heartbeat(tmp_path, clock, 30) as heartbeat:
        times = heartbeat.times()
    assert times[Kind.LOST] == pytest.approx(7.0) and times[Kind.DOWN] == pytest.approx(953.0, abs=1.0)
    assert [found.number for found in read_attempts(tmp_path)] == [1, 2]  # the broken file was not a start
    assert summary(read_attempts(tmp_path))["starts"] == 2


@pytest.mark.parametrize("fault", [OSError(28, "full"), RuntimeError("503")], ids=["disk", "bucket"])
def test_a_run_goes_on_without_its_heartbeat(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(heartbeat_module, "BEAT_EVERY", 0.01)
    with pytest.raises(UserError, match="other"), Clock() as clock, open_heartbeat(tmp_path, clock) as heartbeat:
        monkeypatch.setattr(heartbeat_module, "write_json", lambda *_: (_ for _ in ()).throw(fault))
        time.sleep(0.1)
        assert heartbeat._thread.is_alive()
        raise UserError("the other reason goes before the disk's")
