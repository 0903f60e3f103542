"""Curves of runs: what is read, where it is drawn, and what a person may ask for wrongly."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from launch.monitoring.curves import PlotOptions, X, curve, names, smooth
from launch.monitoring.line_plot import COLOURS, Line, _readable, draw_lines
from launch.monitoring.plot_axes import Axis, plain, scale, seconds


def write_run(folder, stage="decoder", rows=(), batch_size=8):
    (folder / stage).mkdir(parents=True)
    config = {"format_version": 1, "config": {stage: {"train": {"batch_size": batch_size}}}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return epath.Path(folder / stage / "metrics.jsonl")


def test_points_along_each_axis(tmp_path):
    rows = [
        {"step": 5, "loss": 2.0, "wall_seconds": 60.0},
        {"step": 10, "loss": None, "wall_seconds": 70.0},
        {"step": 10, "eval/loss": 1.5, "wall_seconds": 80.0},
        {"step": 15, "loss": 1.0},
    ]
    path = write_run(tmp_path, rows=rows)
    for x, metric, points in [
        (X.STEP, "loss", [(5.0, 2.0), (15.0, 1.0)]),
        (X.SAMPLES, "loss", [(40.0, 2.0), (120.0, 1.0)]),
        (X.TIME, "loss", [(60.0, 2.0)]),
        (X.TIME, "eval/loss", [(80.0, 1.5)]),
    ]:
        assert curve(path, PlotOptions(metric, x)) == points


def test_smoothing_is_a_mean_that_starts_at_the_first_point():
    points = [(0.0, 4.0), (1.0, 4.0), (2.0, 0.0)]
    assert smooth(points, 0.0) == points
    smoothed = smooth(points, 0.5)
    assert smoothed[:2] == [(0.0, 4.0), (1.0, 4.0)]
    assert smoothed[2] == (2.0, pytest.approx((0.5 * 0 + 0.25 * 4 + 0.125 * 4) / 0.875))


def test_names_tell_runs_apart():
    assert names(["a/x", "b/y/"]) == ["x", "y"]
    assert names(["a/x", "b/x"]) == ["a/x", "b/x"]
    assert names(["x/decoder/metrics.jsonl", "y"]) == ["decoder", "y"]


def test_ticks_are_round_and_inside():
    assert scale(Axis("", start=0.0, tight=True), [0.0, 1000.0]).ticks == (0, 200, 400, 600, 800, 1000)
    assert scale(Axis("", start=0.0, tight=True, whole=True), [1.0, 2.0]).ticks == (0, 1, 2)
    assert scale(Axis("", log=True), [1.0, 1000.0]).ticks == (1, 10, 100, 1000)
    assert scale(Axis("", start=0.0, form=seconds, tight=True), [7000.0]).ticks == tuple(900 * i for i in range(8))
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = sorted(rng.normal(size=2) * 10.0 ** rng.integers(-6, 7))
        found = scale(Axis(""), [low, high])
        assert 3 <= len(found.ticks) <= 8 and found.low <= min(found.ticks) <= max(found.ticks) <= found.high
        assert len({plain(tick) for tick in found.ticks}) == len(found.ticks)


def test_words_of_ticks():
    assert [plain(x) for x in (0.0, 0.25, 1500.0, 25_000.0, 2.5e6, 3e9)] == ["0", "0.25", "1,500", "25k", "2.5M", "3B"]
    assert [seconds(x) for x in (0.0, 45.0, 600.0, 7200.0, 9000.0)] == ["0", "45s", "10m", "2h", "2h30m"]


def test_a_spike_does_not_flatten_the_rest_and_every_end_is_seen():
    values = [100.0, 10.0, *[1.0] * 200, *[0.5] * 200]
    assert scale(Axis("", robust=True), values).high < 2
    assert scale(Axis("", robust=True), values, shown=[7.0]).high > 7
    assert scale(Axis(""), values).high > 100


def places(sheet, colour):
    """Pixels of a colour, [rows, columns]."""
    return np.where((np.asarray(sheet) == colour).all(axis=-1))


def test_a_logarithmic_curve_of_powers_is_straight():
    points = [(10.0**i, 10.0**-i) for i in range(5)]
    sheet = draw_lines([Line("", (255, 0, 0), points)], Axis("x", log=True), Axis("y", log=True))
    rows, columns = places(sheet, (255, 0, 0))
    slope, offset = np.polyfit(columns, rows, 1)
    assert np.abs(rows - (slope * columns + offset)).max() < 3 and slope > 0
    assert columns.min() < 90 and columns.max() > 860


def test_the_legend_goes_where_no_curve_is():
    falling = [(float(i), 100.0 - i) for i in range(101)]
    rising = [(float(i), float(i)) for i in range(101)]
    for points, right in ((falling, True), (rising, False)):
        sheet = draw_lines([Line("run", COLOURS[0], points)], Axis("x", start=0.0), Axis("y", start=0.0))
        rows, columns = places(sheet, (230, 230, 230))
        upright = np.bincount(columns, minlength=900) > 15  # the sides of its box; lines of the grid lie
        assert (np.flatnonzero(upright).min() > 450) == right


def test_words_do_not_run_into_each_other():
    found = scale(Axis("", start=0.0, form=lambda x: f"{x:,.0f} samples of data"), [0.0, 1e6])
    kept = _readable(found, lambda text: 8.0 * len(text), 790.0)
    assert 1 < len(kept) < len(found.ticks)


@pytest.mark.entry
def test_several_runs_and_stages(scripts, tiny_run, tmp_path):
    rows = [{"step": step, "loss": 10.0 / step} for step in range(1, 40)]
    write_run(tmp_path / "other", rows=rows)
    out = tmp_path / "loss.png"
    ended = scripts("plot", tiny_run, tmp_path / "other", f"--out={out}", "--smooth=0.5")
    assert ended.code == 0, ended
    assert ended.out == f"{out}: loss of tiny, other\n"
    sheet = Image.open(out)
    assert sheet.size == (900, 3 * 520)  # codec, decoder and clip
    for i, runs in enumerate([(0,), (0, 1), (0,)]):
        frame = np.asarray(sheet)[i * 520 : (i + 1) * 520]
        assert [bool(len(places(frame, colour)[0])) for colour in COLOURS[:2]] == [0 in runs, 1 in runs]
    ended = scripts("plot", tiny_run, f"--out={out}", "--metric=eval/loss", "--x=samples", "--stage=clip", "--log=y")
    assert ended.code == 0 and Image.open(out).size == (900, 520), ended


@pytest.mark.entry
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no run given"),
        (["no/where"], "no/where holds no metrics.jsonl"),
        (["RUN", "--metric=los"], "no row of these runs has it, did you mean 'loss'?"),
        (["RUN", "--stage=decode"], "did you mean 'decoder'?"),
        (["RUN", "--out=RUN/config.json/x.png"], "/config.json/x.png: "),
        (["RUN", "--out=x.nothing"], "--out=x.nothing: images are written as .png, "),
        (["RUN", "RUN"], "a run is named twice"),
    ],
)
def test_refusals(scripts, tiny_run, tmp_path, arguments, part):
    words = [word.replace("RUN", str(tiny_run)) for word in arguments]
    ended = scripts("plot", *words)
    assert ended.code == 2 and part in ended.err and len(ended.err.splitlines()) == 1, ended
