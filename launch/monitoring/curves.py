"""What a plot of runs is made of: their curves, read from their rows, and one frame a stage."""

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence

from etils import epath
from PIL import Image

from dalle_jax.config import read_json
from dalle_jax.errors import UserError
from dalle_jax.run_record import STAGES
from dalle_jax.training.telemetry.attempts import read_attempts
from dalle_jax.training.telemetry.writers import read_rows
from launch.monitoring.line_plot import Line, Point, draw_lines
from launch.monitoring.plot_axes import Axis, plain, seconds


class X(enum.Enum):
    """What curves run over."""

    STEP = "step"
    SAMPLES = "samples"
    TIME = "time"


X_LABELS = {X.STEP: "steps", X.SAMPLES: "samples", X.TIME: "time since the first start"}


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """What is drawn, and how."""

    metric: str = "loss"
    x: X = X.STEP
    smooth: float = 0.0
    """Weight of the past in a running mean."""
    log: frozenset[str] = frozenset()
    """`x`, `y`: axes with a logarithmic scale."""
    width: int = 900
    height: int = 520


def stages(run: epath.Path) -> dict[str, epath.Path]:
    """The `metrics.jsonl` of each stage of a run, by the stage's name.

    Raises:
      UserError: there is none.
    """
    if run.name.endswith(".jsonl") and run.exists():
        return {run.parent.name: run}
    if (run / "metrics.jsonl").exists():
        return {run.name: run / "metrics.jsonl"}
    inside = [path for path in run.iterdir() if (path / "metrics.jsonl").exists()] if run.is_dir() else []
    if not inside:
        raise UserError(f"{run} holds no metrics.jsonl: name a work directory, a stage's folder or a metrics.jsonl")
    return {path.name: path / "metrics.jsonl" for path in inside}


def curve(path: epath.Path, options: PlotOptions) -> list[Point]:
    """The points of a metric along the chosen axis; numbers that were not finite are left out."""
    rows = [row for row in read_rows(path) if row.get(options.metric) is not None]
    if options.x is X.TIME:
        return [(row["wall_seconds"], row[options.metric]) for row in rows if "wall_seconds" in row]
    each = batch_size(path) if options.x is X.SAMPLES else 1
    return [(float(row["step"] * each), row[options.metric]) for row in rows]


def batch_size(path: epath.Path) -> int:
    """Of the stage that a `metrics.jsonl` is of: by its starts, or by the config of its run.

    Raises:
      UserError: neither is there.
    """
    starts = read_attempts(path.parent)
    if starts:
        return starts[-1].batch_size
    try:
        return int(read_json(path.parent.parent / "config.json")["config"][path.parent.name]["train"]["batch_size"])
    except (UserError, KeyError, TypeError):
        raise UserError(f"--x=samples: nothing beside {path} says its batch size; use --x=step") from None


def smooth(points: Sequence[Point], weight: float) -> list[Point]:
    """A running mean whose first points are not drawn towards zero."""
    mean, total, result = 0.0, 0.0, []
    for x, y in points:
        mean, total = weight * mean + (1 - weight) * y, weight * total + (1 - weight)
        result.append((x, mean / total))
    return result


def frame(
    stage: str, curves: Mapping[str, Sequence[Point]], colours: Mapping[str, tuple[int, int, int]], options: PlotOptions
) -> Image.Image:
    """One stage's curves, of all runs that have it."""
    lines = []
    for name, points in curves.items():
        if options.smooth and len(points) > 1:
            lines.append(Line("", colours[name], points, bold=False))
            points = smooth(points, options.smooth)
        lines.append(Line(name, colours[name], points))
    timed, log_x = options.x is X.TIME, "x" in options.log
    x = Axis(
        X_LABELS[options.x], log_x, None if log_x else 0.0, seconds if timed else plain, tight=True, whole=not timed
    )
    y = Axis(f"{stage}: {options.metric}", "y" in options.log, robust=True)
    return draw_lines(lines, x, y, width=options.width, height=options.height)


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one width below each other."""
    sheet = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def names(runs: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as tell the runs apart.

    Raises:
      UserError: two are the same.
    """
    parts = [run.rstrip("/").removesuffix("/metrics.jsonl").split("/") for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run is named twice")


def order(stage: str) -> tuple[int, str]:
    """A key that sorts stages as they are trained."""
    known = list(STAGES)
    return (known.index(stage) if stage in known else len(known)), stage


def known_metrics(paths: Iterable[epath.Path]) -> list[str]:
    """All columns of the rows."""
    return sorted({name for path in paths for row in read_rows(path) for name in row if name != "step"})
