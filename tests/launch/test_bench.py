"""The benchmark's arithmetic and its choice of rows; nothing here is timed."""

import json

import pytest

from dalle_jax.errors import UserError
from launch import bench
from launch.bench_rows import ROWS, timing
from launch.bench_rows.decoder import SPARSE, one_billion, sampling_pairs, small
from launch.bench_rows.workload import Row, Workload


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
        lambda: Workload(lambda: 6.0, flops=300.0, items=6.0),
        "peer",
        1.2,
    )
    result = timing.measure(row, runs=2, warmup=1, peer=True)
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
    row = Row(
        "row", "s", "tokens",
        lambda: Workload(lambda: 2.0, items=4.0, **flops), lambda: Workload(lambda: 1.0, items=4.0),
    )  # fmt: skip
    assert timing.measure(row, runs=2, warmup=1, peer=True)["ratio"] == 0.5


def test_the_peer_is_left_alone_unless_asked_for(clock):
    def fail():
        raise AssertionError("the peer was made")

    result = timing.measure(
        Row("row", "s", "tokens", lambda: Workload(lambda: 1.0), fail), runs=2, warmup=1, peer=False
    )
    assert "ratio" not in result and "share_of_matmul" not in result


def test_choice_of_rows():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.gpu for row in bench.chosen([], gpu=False)} == {False}
    assert [row.name for row in bench.chosen(["decoder"], gpu=False)] == ["decoder_step"]
    assert [row.name for row in bench.chosen(["clip_b16_step"], gpu=False)] == ["clip_b16_step"], "named in full"
    with pytest.raises(UserError, match="did you mean 'sampling'"):
        bench.chosen(["sampleing"], gpu=False)


def test_pairs_between_image_positions():
    config = small(SPARSE)
    row = sum(min(i, 16) + 1 for i in range(256))
    column = 16 * sum(range(1, 17))
    conv = sampling_pairs(config) - 3 * row - 3 * column
    assert conv % 2 == 0 and column < conv // 2 < 256 * 257 // 2
    assert one_billion().grid_size == 32
