"""Curves of several runs in one image.

    python -m launch.plot W1 W2 --out=loss.png
    python -m launch.plot W1 W2/decoder --metric=eval/loss --x=samples --log=y --stage=decoder --smooth=0.9

A run is a work directory, one stage's folder or a `metrics.jsonl`, local or gs://. Each stage gets a frame of its own.
`--x=time` counts from the first start of a stage, restarts included.
"""

import io
from collections.abc import Sequence

from absl import flags
from etils import epath
from PIL import Image

from dalle_jax import storage
from dalle_jax.errors import UserError, closest
from launch.cli import start_command
from launch.monitoring.curves import PlotOptions, X, curve, frame, known_metrics, names, order, stack, stages
from launch.monitoring.line_plot import COLOURS

OUT = flags.DEFINE_string("out", "plot.png", "image to write, local or gs://")
METRIC = flags.DEFINE_string("metric", "loss", "column of metrics.jsonl, such as eval/loss")
OVER = flags.DEFINE_enum_class("x", X.STEP, X, "what the curves run over")
STAGE = flags.DEFINE_string("stage", "", "plot this stage alone; default: each in a frame of its own")
SMOOTH = flags.DEFINE_float("smooth", 0.0, "weight of the past in a running mean; the raw curve stays behind it",
                            lower_bound=0.0, upper_bound=0.9999)  # fmt: skip
LOG = flags.DEFINE_multi_enum("log", [], ["x", "y"], "axes with a logarithmic scale")
WIDTH = flags.DEFINE_integer("width", 900, "pixels", lower_bound=300)
HEIGHT = flags.DEFINE_integer("height", 520, "pixels of each frame", lower_bound=200)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP", ".pdf": "PDF"}


def main(runs: Sequence[str]) -> None:
    """Reads the curves, one frame a stage, and plots them."""
    if not runs:
        raise UserError("no run given: python -m launch.plot W1 W2 --out=loss.png")
    if len(runs) > len(COLOURS):
        raise UserError(f"{len(runs)} runs are given, and {len(COLOURS)} colours can be told apart: plot fewer")
    found = {name: stages(storage.as_path(run)) for name, run in zip(names(runs), runs, strict=True)}
    colours = dict(zip(found, COLOURS, strict=False))
    options = PlotOptions(METRIC.value, OVER.value, SMOOTH.value, frozenset(LOG.value), WIDTH.value, HEIGHT.value)
    images = []
    for stage in _chosen({stage for folders in found.values() for stage in folders}):
        curves = {name: curve(folders[stage], options) for name, folders in found.items() if stage in folders}
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            images.append(frame(stage, curves, colours, options))
    if not images:
        known = known_metrics([path for folders in found.values() for path in folders.values()])
        where = f" with a place on --x={OVER.value.value}" if METRIC.value in known else ""
        raise UserError(f"--metric={METRIC.value}: no row of these runs has it{where}{closest(METRIC.value, known)}")
    _save(stack(images), OUT.value)
    print(f"{OUT.value}: {METRIC.value} of {', '.join(found)}")


def _save(image: Image.Image, out: str) -> None:
    """Writes an image in the format that its name ends with, on a disk or in a bucket."""
    kind, encoded = FORMATS.get(epath.Path(out).suffix.lower()), io.BytesIO()
    if kind is None:
        raise UserError(f"--out={out}: images are written as {', '.join(FORMATS)}; end its name with one of these")
    image.save(encoded, kind)
    try:
        storage.write_whole(storage.expanduser(out), encoded.getvalue())
    except OSError as error:
        raise UserError(f"--out={out}: {error}") from error


def _chosen(found: set[str]) -> list[str]:
    if not STAGE.value:
        return sorted(found, key=order)
    if STAGE.value not in found:
        near = closest(STAGE.value, found)
        raise UserError(f"--stage={STAGE.value}: no run has it{near} (they have {', '.join(sorted(found, key=order))})")
    return [STAGE.value]


if __name__ == "__main__":
    start_command(main)
