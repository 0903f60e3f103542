"""Curves of accuracy over images processed: their ratios, a table, and the figure."""

import csv
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from clip_jax.objectives import Objective
from launch.monitoring.line_plot import COLOURS, Line, Span, draw_lines
from launch.monitoring.plot_axes import Axis, percent

ACCURACY = "eval/zero_shot_accuracy"
PAIRS = tuple(itertools.combinations(Objective, 2))

Curve = Sequence[tuple[float, float]]
"""Images processed, zero-shot accuracy."""


def read_curve(metrics: str, batch_size: int) -> list[tuple[float, float]]:
    """The evaluations among the rows of a `metrics.jsonl`."""
    rows = [json.loads(line) for line in metrics.splitlines()]
    return [(float(row["step"] * batch_size), row[ACCURACY]) for row in rows if row.get(ACCURACY) is not None]


def images_to(curve: Curve, accuracy: float, chance: float) -> float:
    """Images processed when a curve, which begins at chance, first reaches an accuracy that it does reach."""
    before = (0.0, chance)
    for point in curve:
        if point[1] >= accuracy:
            rise = point[1] - before[1]
            share = (accuracy - before[1]) / rise if rise > 0 else 1.0
            return before[0] + share * (point[0] - before[0])
        before = point
    raise ValueError(f"the curve does not reach {accuracy}")


def common_accuracy(curves: Sequence[Curve]) -> float:
    """The highest accuracy that all curves reach."""
    return min(max(y for _, y in curve) for curve in curves)


def compare(slow: Sequence[Curve], fast: Sequence[Curve], chance: float) -> dict[str, Any] | None:
    """How many times the images of the second the first needs: geometric mean and ends over all pairs of runs.

    Pairs of which one does not get above chance are left out; None where that is all of them.
    """
    ratios = []
    for pair in itertools.product(slow, fast):
        accuracy = common_accuracy(pair)
        if accuracy > chance:
            first, second = (images_to(curve, accuracy, chance) for curve in pair)
            ratios.append(first / second)
    if not ratios:
        return None
    mean = float(np.exp(np.mean(np.log(ratios))))
    return {"ratio": mean, "lowest": float(min(ratios)), "highest": float(max(ratios)), "pairs": len(ratios)}


def describe(ratio: Mapping[str, float] | None) -> str:
    """A ratio as people read it, with its interval."""
    if ratio is None:
        return "not above chance"
    return f"{ratio['ratio']:.1f}x ({ratio['lowest']:.1f} to {ratio['highest']:.1f})"


def summarise(runs: Mapping[Objective, Sequence[dict[str, Any]]], chance: float) -> dict[str, Any]:
    """All runs, and the ratios between the chosen ones."""
    chosen = {
        objective: [found["curve"] for found in several if found["chosen"]] for objective, several in runs.items()
    }
    ratios = {f"{slow.value} / {fast.value}": compare(chosen[slow], chosen[fast], chance) for slow, fast in PAIRS}
    return {"runs": [found for several in runs.values() for found in several], "ratios": ratios, "chance": chance}


def write_csv(path: epath.Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """A line a point."""
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["objective", "learning_rate", "seed", "chosen", "pictures", "zero_shot_accuracy"])
        for found in runs:
            head = [found[name] for name in ("objective", "learning_rate", "seed", "chosen")]
            writer.writerows([*head, *point] for point in found["curve"])


def plot(report: Mapping[str, Any]) -> Image.Image:
    """Thin lines: the chosen runs; thick ones: their means; arrows: ratios to the one that ends next above."""
    lines, chosen, means = [], {}, {}
    for objective, colour in zip(Objective, COLOURS, strict=False):
        curves = [run["curve"] for run in report["runs"] if run["chosen"] and run["objective"] == objective.value]
        lines += [Line("", colour, curve, bold=False) for curve in curves]
        chosen[objective] = curves
        means[objective] = [tuple(np.mean(points, axis=0).tolist()) for points in zip(*curves, strict=True)]
        lines.append(Line(objective.value.replace("_", " "), colour, means[objective]))
    spans = []
    for slow, fast in itertools.pairwise(sorted(Objective, key=lambda objective: means[objective][-1][1])):
        accuracy = common_accuracy([means[slow], means[fast]])
        ratio = compare(chosen[slow], chosen[fast], report["chance"])
        if ratio is not None and accuracy > report["chance"]:
            start, end = (images_to(means[objective], accuracy, report["chance"]) for objective in (fast, slow))
            spans.append(Span(describe(ratio), start, end, accuracy))
    return draw_lines(
        lines,
        Axis("images processed", start=0.0, tight=True),
        Axis("zero-shot accuracy, %", start=0.0, form=percent),
        spans,
    )
