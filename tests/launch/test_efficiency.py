"""The efficiency figure: its ratios by hand, its image, and a tiny run of everything."""

import csv
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clip_jax.objectives import Objective
from configs.efficiency import get_config
from dalle_jax.config import from_config_dict
from dalle_jax.errors import UserError
from dalle_jax.training.telemetry.rows import NotFinite
from launch import efficiency
from launch.evaluation import efficiency_report as report
from launch.monitoring.line_plot import Line, Span, draw_lines
from launch.monitoring.plot_axes import Axis, percent

FAST = [(10.0, 0.3), (20.0, 0.5), (30.0, 0.9)]
SLOW = [(10.0, 0.2), (20.0, 0.15), (30.0, 0.3), (40.0, 0.4)]


def test_pictures_to_an_accuracy():
    assert report.images_to(FAST, 0.7, 0.1) == pytest.approx(25)  # halfway between two points
    assert report.images_to(FAST, 0.2, 0.1) == pytest.approx(5)  # halfway from chance
    assert report.images_to(SLOW, 0.2, 0.1) == pytest.approx(10)  # the first time
    assert report.images_to(SLOW, 0.4, 0.1) == 40
    with pytest.raises(ValueError, match="does not reach"):
        report.images_to(SLOW, 0.5, 0.1)


def test_ratios():
    # At the slow one's highest accuracy, 0.4: 40 images against 15; the other seed of the fast one: against 5.
    faster = [(10.0, 0.7)]
    assert report.compare([SLOW], [FAST], 0.1)["ratio"] == pytest.approx(40 / 15)
    assert report.compare([FAST], [SLOW], 0.1)["ratio"] == pytest.approx(15 / 40)
    both = report.compare([SLOW], [FAST, faster], 0.1)
    assert both["lowest"] == pytest.approx(40 / 15) and both["highest"] == pytest.approx(40 / 5)
    assert both["ratio"] == pytest.approx((40 / 15 * 40 / 5) ** 0.5) and both["pairs"] == 2
    assert report.compare([SLOW], [[(10.0, 0.1)]], 0.1) is None
    assert report.describe(both) == "4.6x (2.7 to 8.0)" and report.describe(None) == "not above chance"


def test_curves_are_the_evaluations():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, report.ACCURACY: 0.25}, {"step": 4, report.ACCURACY: 0.5}]
    assert report.read_curve("\n".join(map(json.dumps, rows)), 8) == [(16.0, 0.25), (32.0, 0.5)]


def test_the_plot_puts_points_where_they_belong():
    colour = (255, 0, 0)
    sheet = np.asarray(
        draw_lines(
            [Line("", colour, [(0, 0), (50, 0.5), (100, 0.5)])],
            Axis("x", start=0.0, tight=True),
            Axis("y", start=0.0, form=percent),
            [Span("2x", 10, 90, 0.25)],
        )
    )
    assert sheet.shape == (600, 900, 3)
    rows, columns = np.where((sheet == colour).all(axis=-1))
    assert abs(columns.min() - 80) <= 3 and abs(columns.max() - 870) <= 3
    assert abs(rows.max() - 540) <= 3 and abs(rows[columns > 300].min() - (540 - 510 * 0.5 / 0.525)) <= 3
    level = round(540 - 510 * 0.25 / 0.525)
    dark = np.flatnonzero((sheet[level] == 0).all(axis=-1))
    assert dark.min() <= 80 + 79 + 2 and dark.max() >= 80 + 711 - 2


def test_arrows_go_from_each_objective_to_the_one_that_ends_next_above(monkeypatch):
    curves = dict(zip(Objective, ([(10.0, 0.2), (20.0, 0.4)], [(10.0, 0.2), (20.0, 0.3)], [(10.0, 0.6)]), strict=True))
    runs = [{"objective": objective.value, "chosen": True, "curve": curve} for objective, curve in curves.items()]
    monkeypatch.setattr(report, "draw_lines", lambda lines, x, y, spans: spans)
    first, second = report.plot({"runs": runs, "chance": 0.1})
    # Words, which end lowest, against captions: 20 images for 0.3 against 15; captions against contrast: 20 and 6.
    assert (first.text, first.start, first.end, first.y) == ("1.3x (1.3 to 1.3)", 15.0, 20.0, 0.3)
    assert (second.text, second.start, second.end, second.y) == ("3.3x (3.3 to 3.3)", pytest.approx(6.0), 20.0, 0.4)


@pytest.mark.entry
def test_a_tiny_run_and_going_on_with_it(scripts, photographs, tmp_path):
    arguments = [
        "--config=configs/efficiency.py:tiny", f"--workdir={tmp_path / 'W'}", "--config.data.source=webdataset",
        f"--config.data.path={photographs}", "--config.learning_rates=(0.001, 1e30)",
    ]  # fmt: skip
    done = scripts("efficiency", *arguments)
    assert done.code == 0, done
    left_out = [line for line in done.err.splitlines() if "rate 1e+30, seed 0, is left out: training stopped" in line]
    assert len(left_out) == 3
    found = json.loads((tmp_path / "W" / "efficiency.json").read_text())
    assert [run["learning_rate"] for run in found["left_out"]] == [1e30] * 3
    assert all("training stopped" in run["reason"] for run in found["left_out"])
    assert len(found["runs"]) == 6 and found["chance"] == 0.1 and len(found["ratios"]) == 3
    assert all([x for x, _ in run["curve"]] == [8.0, 16.0] for run in found["runs"])
    assert {run["objective"] for run in found["runs"]} == {objective.value for objective in Objective}
    with open(tmp_path / "W" / "efficiency.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert Image.open(tmp_path / "W" / "efficiency.png").size == (900, 600)
    other = scripts("efficiency", *arguments, "--config.clip.train.num_steps=4", "--config.clip.train.eval_every=2")
    (line,) = other.err.splitlines()  # before anything is trained
    assert other.code == 2 and "holds runs of another config.clip.train: num_steps (2 there, 4 now), eval_e" in line
    again = scripts("efficiency", *arguments)  # the folder is as it was
    assert again.code == 0 and json.loads((tmp_path / "W" / "efficiency.json").read_text()) == found


@pytest.mark.entry
def test_captions_without_labels_and_held_out_labels_without_captions(scripts, photographs, tmp_path):
    """The paper's setting: captions of the web, and a labelled data set."""
    for split, kinds in (("train", (".png", ".txt")), ("test", (".png", ".cls"))):
        with (
            tarfile.open(photographs.replace("*", "00000")) as whole,
            tarfile.open(tmp_path / f"{split}-0.tar", "w") as part,
        ):
            for member in whole:
                if member.name.endswith(kinds):
                    part.addfile(member, whole.extractfile(member))
    done = scripts(
        "efficiency", "--config=configs/efficiency.py:tiny", f"--workdir={tmp_path / 'W'}", "--config.seeds=(0,)",
        "--config.data.source=webdataset", f"--config.data.path={tmp_path}/{{split}}-0.tar",
        "--config.data.eval_split=test",
    )  # fmt: skip
    assert done.code == 0, done
    found = json.loads((tmp_path / "W" / "efficiency.json").read_text())
    assert [len(run["curve"]) for run in found["runs"]] == [2, 2, 2]


@pytest.mark.parametrize("name", ["num_steps", "eval_every", "eval_batches"])
def test_a_figure_needs_points(name):
    config = get_config("tiny")
    config.clip.train[name] = 0
    with pytest.raises(UserError, match=f"config: clip.train.{name} must be above 0"):
        from_config_dict(efficiency.EfficiencyConfig, config)


def test_a_seed_that_diverges_is_left_out(monkeypatch, tmp_path):
    def diverges_with_one(experiment, objective, rate, seed):
        if seed == 1:
            raise NotFinite("training stopped at step 3")
        return {
            "objective": objective.value,
            "learning_rate": rate,
            "seed": seed,
            "chosen": False,
            "curve": [(8, rate)],
        }

    monkeypatch.setattr(efficiency, "run", diverges_with_one)
    config, left_out = SimpleNamespace(seeds=(0, 1, 2), learning_rates=(0.1, 0.2)), []
    experiment = efficiency.Experiment(config, None, np.zeros((2, 1, 4), np.int32), None, tmp_path)
    runs = efficiency.search(experiment, Objective.CONTRASTIVE, left_out)
    assert [(run["learning_rate"], run["seed"]) for run in runs if run["chosen"]] == [(0.2, 0), (0.2, 2)]
    assert [(run["learning_rate"], run["seed"]) for run in left_out] == [(0.2, 1)]


@pytest.mark.entry
def test_an_objective_that_diverges_at_every_rate(scripts, photographs, tmp_path):
    done = scripts(
        "efficiency", "--config=configs/efficiency.py:tiny", f"--workdir={tmp_path / 'W'}",
        "--config.data.source=webdataset", f"--config.data.path={photographs}", "--config.learning_rates=(1e30,)",
    )  # fmt: skip
    assert done.code == 2 and done.err.splitlines()[-1].startswith("error: caption_language_model diverges"), done


def test_classes_in_the_order_of_the_labels(monkeypatch):
    config = from_config_dict(efficiency.EfficiencyConfig, get_config("tiny"))
    published = efficiency.published_prompts("CIFAR10").classes
    source = SimpleNamespace(has_labels=True, class_names=())
    monkeypatch.setattr(efficiency, "open_source", lambda data, split, **options: source)
    assert efficiency.class_names(config) == [name for (name,) in published], "where the data name none"
    source.class_names = tuple(name for (name,) in reversed(published))
    assert efficiency.class_names(config) == list(source.class_names)
    source.class_names = tuple(f"class {i}" for i in range(100))
    with pytest.raises(UserError, match="the data have 100 classes and CIFAR10 has 10.*set config.prompts"):
        efficiency.class_names(config)


@pytest.mark.entry
def test_data_without_labels_are_refused(scripts, tmp_path):
    done = scripts(
        "efficiency",
        "--config=configs/efficiency.py:tiny",
        f"--workdir={tmp_path / 'W'}",
        "--config.data.source=shapes",
        scripts.data,
    )
    assert done.code == 2 and "no labels" in done.err and not (tmp_path / "W").exists(), done
