"""Curves of several runs in one picture.

    python -m launch.plot W1 W2 --out=loss.png
    python -m launch.plot W1 W2/decoder --metric=eval/loss --x=samples --log=y --stage=decoder --smooth=0.9

A run is a work directory, one stage's folder or a `metrics.jsonl`, local or gs://. Each stage gets a frame of its own.
`--x=time` counts from the first start of a stage, restarts included.
"""

from collections.abc import Mapping, Sequence

from absl import flags
from etils import epath
from PIL import Image

from dalle_jax.config import read_json
from dalle_jax.errors import UserError, closest
from dalle_jax.training.metrics import read_rows
from dalle_jax.training.starts import read_starts
from launch.flags import start_command
from launch.line_plot import COLOURS, Line, Point, draw_lines
from launch.plot_axes import Axis, plain, seconds

OUT = flags.DEFINE_string("out", "plot.png", "picture to write")
METRIC = flags.DEFINE_string("metric", "loss", "column of metrics.jsonl, such as eval/loss")
X = flags.DEFINE_enum("x", "step", ["step", "samples", "time"], "what the curves run over")
STAGE = flags.DEFINE_string("stage", "", "draw this stage alone; default: each in a frame of its own")
SMOOTH = flags.DEFINE_float("smooth", 0.0, "weight of the past in a running mean; the raw curve stays behind it",
                            lower_bound=0.0, upper_bound=0.9999)  # fmt: skip
LOG = flags.DEFINE_multi_enum("log", [], ["x", "y"], "axes with a logarithmic scale")
WIDTH = flags.DEFINE_integer("width", 900, "pixels", lower_bound=300)
HEIGHT = flags.DEFINE_integer("height", 520, "pixels of each frame", lower_bound=200)

X_LABELS = {"step": "steps", "samples": "samples", "time": "time since the first start"}


def main(runs: Sequence[str]) -> None:
    """Reads the curves, one frame a stage, and draws."""
    if not runs:
        raise UserError("no run given: python -m launch.plot W1 W2 --out=loss.png")
    if len(set(runs)) > len(COLOURS):
        raise UserError(f"{len(set(runs))} runs are given, and {len(COLOURS)} colours can be told apart: draw fewer")
    named = dict(zip(_names(runs), runs, strict=True))
    found = {name: stages(epath.Path(run)) for name, run in named.items()}
    frames = sorted({stage for folders in found.values() for stage in folders}, key=_order)
    if STAGE.value:
        if STAGE.value not in frames:
            raise UserError(f"--stage={STAGE.value}: no run has it{closest(STAGE.value, frames)} (they have "
                            f"{', '.join(frames)})")  # fmt: skip
        frames = [STAGE.value]
    pictures = []
    for stage in frames:
        curves = {name: curve(folders[stage]) for name, folders in found.items() if stage in folders}
        colours = dict(zip(named, COLOURS, strict=False))
        drawn = {name: points for name, points in curves.items() if points}
        if drawn:
            pictures.append(frame(stage, drawn, colours))
    if not pictures:
        raise UserError(_missing([folder for folders in found.values() for folder in folders.values()]))
    sheet = stack(pictures)
    try:
        sheet.save(OUT.value)
    except (OSError, ValueError) as error:
        raise UserError(f"--out={OUT.value}: {error}") from error
    print(f"{OUT.value}: {METRIC.value} of {', '.join(named)}")


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


def curve(path: epath.Path) -> list[Point]:
    """The points of a metric along the chosen axis; numbers that were not finite are left out."""
    rows = [row for row in read_rows(path) if row.get(METRIC.value) is not None]
    if X.value == "time":
        return [(row["wall_seconds"], row[METRIC.value]) for row in rows if "wall_seconds" in row]
    each = batch_size(path) if X.value == "samples" else 1
    return [(float(row["step"] * each), row[METRIC.value]) for row in rows]


def batch_size(path: epath.Path) -> int:
    """Of the stage that a `metrics.jsonl` is of: by its starts, or by the config of its run.

    Raises:
      UserError: neither is there.
    """
    starts = read_starts(path.parent)
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


def frame(stage: str, curves: Mapping[str, list[Point]], colours: Mapping[str, tuple[int, int, int]]) -> Image.Image:
    """One stage's curves, of all runs that have it."""
    lines = []
    for name, points in curves.items():
        if SMOOTH.value and len(points) > 1:
            lines.append(Line("", colours[name], points, bold=False))
            points = smooth(points, SMOOTH.value)
        lines.append(Line(name, colours[name], points))
    log = set(LOG.value)
    x = Axis(X_LABELS[X.value], log="x" in log, start=None if "x" in log else 0.0,
             form=seconds if X.value == "time" else plain, whole=X.value != "time")  # fmt: skip
    y = Axis(f"{stage}: {METRIC.value}", log="y" in log, robust=True)
    return draw_lines(lines, x, y, width=WIDTH.value, height=HEIGHT.value)


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def _names(runs: Sequence[str]) -> list[str]:
    """The last parts of the paths, as many as tell the runs apart."""
    parts = [run.rstrip("/").removesuffix("/metrics.jsonl").split("/") for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run is named twice")


def _order(stage: str) -> tuple[int, str]:
    known = ("codec", "decoder", "clip")
    return (known.index(stage) if stage in known else len(known)), stage


def _missing(paths: Sequence[epath.Path]) -> str:
    known = sorted({name for path in paths for row in read_rows(path) for name in row if name != "step"})
    where = " with a time" if X.value == "time" and METRIC.value in known else ""
    return f"--metric={METRIC.value}: no row of these runs has it{where}{closest(METRIC.value, known)}"


if __name__ == "__main__":
    start_command(main)
