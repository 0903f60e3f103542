"""The figures of the shapes suite on arrays worked out by hand, and the whole suite once."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest

import clip_jax
import dalle_jax
from dalle_jax.config import write_json
from dalle_jax.data.shapes.judge import ATTRIBUTES, CHANCE
from dalle_jax.data.shapes.scenes import captions, random_scene
from dalle_jax.training.telemetry.attempts import Attempt
from dalle_jax.training.telemetry.clock import Kind
from launch.evaluation import shapes


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[1, 0], [1, 0]], 1.0),  # always the best
        ([[0, 1], [0, 1]], -1.0),  # always the worst
        ([[1, 0], [0, 1]], 0.0),  # as good as chance
        ([[1, 0], [0, 1], [1, 0]], 0.3333),  # mean 1/2, best 1, chosen 2/3
        ([[1, 1], [0, 0]], None),  # nothing to choose
    ],
)
def test_gap_closed(scores, expected):
    assert shapes.gap_closed(np.asarray(scores, float)[..., None]) == expected


def test_gap_closed_averages_attributes():
    results = np.asarray([[[1, 0, 0, 1], [1, 1, 1, 1]]], float)  # 1/2 and 1: chosen below the mean of 3/4
    assert shapes.gap_closed(results) == -1.0


def test_summary():
    results = np.tile(np.asarray([[1, 1, 1, 1, 0], [0, 0, 1, 0, 0]], float), (100, 1))
    summary = shapes._summary(results)
    assert summary["mean"] == 0.5
    assert {name: summary[name] for name in ATTRIBUTES} == dict(zip(ATTRIBUTES, (0.5, 0.5, 1, 0.5, 0), strict=True))
    low, high = summary["interval_95"]
    half = 1.96 * 0.3 / 200**0.5  # a caption's mean is 0.8 or 0.2
    assert low == pytest.approx(0.5 - half, abs=0.006) and high == pytest.approx(0.5 + half, abs=0.006)


def test_spread_is_of_all_captions_that_it_is_given():
    # Two captions of two candidates each, of which one is wholly right.
    results = np.broadcast_to(np.asarray([[0, 0], [1, 0]], float)[..., None], (2, 2, len(ATTRIBUTES)))
    found = shapes._spread(results, "_seen")
    assert found.keys() == {"mean_of_8_seen", "best_of_8_by_judge_seen"}
    assert (found["mean_of_8_seen"]["mean"], found["best_of_8_by_judge_seen"]["mean"]) == (0.25, 0.5)


def test_seconds_are_those_of_the_stages_and_of_the_evaluation(tmp_path, monkeypatch):
    """However long ago the run was trained."""
    for stage, spent in (("codec", [30.0, 50.0]), ("clip", [20.0])):
        began = 1_000.0
        for number, seconds in enumerate(spent, 1):
            kinds = dict.fromkeys([kind.value for kind in Kind], 0.0) | {"step": seconds}
            found = Attempt(number=number, stage=stage, began=began, beat=began + seconds, moved=began, doing="step",
                          first_step=100 * (number - 1), step=100 * number, num_steps=200, batch_size=8,
                          seconds=kinds)  # fmt: skip
            write_json(tmp_path / stage / "starts" / f"{number:04d}.json", dataclasses.asdict(found))
            began += seconds + 5.0  # until the next start
    monkeypatch.setattr(shapes, "process_began", lambda: time.time() - 7.0)
    assert shapes.seconds_until_now(tmp_path) == pytest.approx(30 + 5 + 50 + 20 + 7, abs=1.0)


class FakeClip:
    """Features that a test chose."""

    def __init__(self, image, text):
        self.image, self.text = np.asarray(image, np.float32), np.asarray(text, np.float32)

    def encode_image(self, images):
        return self.image

    def encode_text(self, texts):
        return self.text


def test_retrieval_at_1():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(4)]
    texts, pictures = [captions(scene)[0] for scene in scenes], np.zeros((4, 8, 8, 3), np.uint8)
    eye = np.eye(4)
    # Lengths of features do not count: cosines do.
    right = FakeClip(eye * 5, eye * [[1], [9], [2], [3]])
    assert shapes.retrieval_at_1(right, scenes, texts, pictures) == 1.0
    swapped = FakeClip(eye, eye[[1, 0, 2, 3]])
    assert shapes.retrieval_at_1(swapped, scenes, texts, pictures) == 0.5
    # Another caption of the same scene is as right.
    assert shapes.retrieval_at_1(swapped, [scenes[0], scenes[0], *scenes[2:]], texts, pictures) == 1.0


def test_captioned_grid():
    images = np.zeros((2, 3, 16, 16, 3), np.uint8)
    images[1, 2] = (10, 200, 30)
    sheet = shapes.captioned_grid(images, ["a", "b"], gap=4, line=18)
    assert sheet.shape == (2 * (16 + 18 + 4) + 4, 3 * (16 + 4) + 4, 3)
    top, left = 4 + 38 + 18, 4 + 2 * 20
    assert (sheet[top : top + 16, left : left + 16] == (10, 200, 30)).all()
    assert (sheet[top - 1, left : left + 16] == 255).all() and (sheet[top, left - 1] == 255).all()
    assert sheet[4:22].min() < 128  # the caption's letters


@pytest.mark.entry
def test_whole_suite(tiny_run, tmp_path, monkeypatch):
    for name, value in {"NUM_CAPTIONS": 3, "SHEET_CAPTIONS": 3, "SHEET_CANDIDATES": 8}.items():
        monkeypatch.setattr(shapes, name, value)
    report = shapes.evaluate(dalle_jax.load(tiny_run), clip_jax.load(tiny_run), tmp_path)
    json.dumps(report)
    for split in ("seen", "unseen"):
        accuracy, best = (report[f"{name}_{split}"]["mean"] for name in ("attribute_accuracy", "best_of_8_by_judge"))
        assert 0 <= accuracy <= best <= 1 and report[f"mean_of_8_{split}"]["mean"] <= best
        assert set(report[f"attribute_accuracy_{split}"]) == {"mean", "interval_95", *ATTRIBUTES}
    for name in ("mean_of_8", "best_of_8_by_judge"):  # as many captions of both splits
        seen, unseen, both = (report[name + suffix] for suffix in ("_seen", "_unseen", ""))
        assert both["mean"] == pytest.approx((seen["mean"] + unseen["mean"]) / 2, abs=2e-4)
        assert set(both) == {"mean", "interval_95", *ATTRIBUTES}
    assert report["judge_on_originals"]["mean"] > 0.9 and set(report["chance"]) == {"mean", *ATTRIBUTES}
    assert report["chance"]["mean"] == pytest.approx(np.mean([CHANCE[name] for name in ATTRIBUTES]), abs=1e-4)
    assert 0 < report["codec_psnr"] < 60 and 0 < report["codebook_usage"] <= 1
    assert {path.name for path in Path(tmp_path).iterdir()} == {"grid.png", "reconstructions.png"}
