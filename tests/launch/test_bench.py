"""The benchmark's arithmetic and its choice of rows; nothing here is timed."""

import json
import sys

import pytest

from dalle_jax.errors import UserError
from launch import bench
from launch.benchmarks import ROWS, subprocess_workload, timing
from launch.benchmarks.decoder import SPARSE, one_billion, sampling_pairs, small
from launch.benchmarks.workload import Row, Workload


@pytest.fixture
def clock(monkeypatch):
    """Every run takes what its workload returns, in seconds; the machine gives 100 FLOP/s and 10 B/s, then half."""
    rates = iter([timing.Rates(100.0, 10.0), timing.Rates(50.0, 5.0), timing.Rates(50.0, 5.0)])
    monkeypatch.setattr(timing.Rates, "now", classmethod(lambda cls: next(rates)))
    monkeypatch.setattr(timing, "_seconds", lambda run: run())


def test_measure(clock):
    ours = iter([None, 2.0, 4.0])
    row = Row(
        "row",
        "shape",
        "tokens",
        lambda: Workload(lambda: next(ours), flops=150.0, bytes=3.0, items=6.0),
        peer="peer",
        reach=1.2,
    )
    result = timing.measure(row, runs=2, warmup=1, peer=Workload(lambda: 6.0, flops=300.0, items=6.0))
    assert (result["seconds"], result["min"], result["max"]) == (3.0, 2.0, 4.0)
    assert result["flop_per_second"] == 50.0 and result["items_per_second"] == 2.0
    # 75 of 75 (the mean of before and after), then 37.5 of 50.
    assert result["share_of_matmul"] == pytest.approx((1.0 + 0.75) / 2)
    assert result["share_of_memory"] == pytest.approx((1.5 / 7.5 + 0.75 / 5) / 2)
    # Useful FLOP/s to useful FLOP/s, run by run: 75 / 50, then 37.5 / 50.
    assert result["ratio"] == pytest.approx((1.5 + 0.75) / 2)
    assert result["peer"]["seconds"] == 6.0
    json.dumps(result)
    assert "1.12x peer (6.0000 s; to reach: 1.2x)" in bench.line(result, row)


@pytest.mark.parametrize("flops", [{}, {"flops": 1e9}])
def test_unless_both_count_operations_items_are_compared(clock, flops):
    row = Row("row", "s", "tokens", lambda: Workload(lambda: 2.0, items=4.0, **flops))
    assert timing.measure(row, runs=2, warmup=1, peer=Workload(lambda: 1.0, items=4.0))["ratio"] == 0.5


def test_without_a_peer_nothing_is_compared(clock):
    result = timing.measure(Row("row", "s", "tokens", lambda: Workload(lambda: 1.0)), runs=2, warmup=1)
    assert "ratio" not in result and "share_of_matmul" not in result


def test_a_process_runs_once_for_each_time_it_is_asked(tmp_path):
    log = str(tmp_path / "log")
    statement = f"""
from launch.benchmarks.subprocess_workload import serve
serve({{"items": 3.0}}, lambda: open({log!r}, "a").write("run "))
"""
    there = subprocess_workload.start("the test", statement, {})
    there.run()
    there.run()
    assert there.facts == {"items": 3.0} and (tmp_path / "log").read_text() == "run run "


def test_a_process_that_dies_is_named():
    with pytest.raises(RuntimeError, match="the process of a row's peer has died"):
        subprocess_workload.start("a row's peer", "raise SystemExit(1)", {})


def test_a_peer_that_is_not_installed_is_named(monkeypatch, capsys):
    def absent():
        raise ImportError("no module", name="open_clip")

    row = Row("row", "s", "tokens", lambda: Workload(lambda: 1.0), absent)
    monkeypatch.setattr("launch.benchmarks.ROWS", (row,))
    monkeypatch.setattr(sys, "stdin", iter(()))
    subprocess_workload.serve_peer("row")
    said = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(subprocess_workload, "start", lambda *_: subprocess_workload.Elsewhere(said, lambda: None))
    with pytest.raises(ImportError) as error:
        subprocess_workload.peer_of(row)
    assert error.value.name == "open_clip"


def test_choice_of_rows():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.gpu for row in bench.chosen([], gpu=False)} == {False}
    assert [row.name for row in bench.chosen(["decoder"], gpu=False)] == ["decoder_step"]
    assert [row.name for row in bench.chosen(["clip_b16_step"], gpu=False)] == ["clip_b16_step"], "named in full"
    with pytest.raises(UserError, match="did you mean 'sampling'"):
        bench.chosen(["sampleing"], gpu=False)
    with pytest.raises(UserError, match="--rows: clip_b16_step.* sized for a GPU: a whole name runs here too"):
        bench.chosen(["clip_b16"], gpu=False)


def test_pairs_between_image_positions():
    config = small(SPARSE)
    row = sum(min(i, 16) + 1 for i in range(256))
    column = 16 * sum(range(1, 17))
    conv = sampling_pairs(config) - 3 * row - 3 * column
    assert conv % 2 == 0 and column < conv // 2 < 256 * 257 // 2
    assert one_billion().grid_size == 32
