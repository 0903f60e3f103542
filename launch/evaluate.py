"""Measures trained models.

    python -m launch.evaluate --model=W                                          # the drawn scenes' own suite
    python -m launch.evaluate --model=W --suite=zero_shot,linear_probe --data=cifar10 --data='wds_vtab-pets'
    python -m launch.evaluate --model=W --suite=retrieval --data=coco_captions --split=val

`shapes` needs a work directory with codec, decoder and CLIP trained on the drawn scenes. It writes report.json,
grid.png and reconstructions.png, and prints the figures.

`zero_shot`, `linear_probe` and `retrieval` measure a CLIP on each `--data`: a folder in CLIP_benchmark's layout, one
with a folder for each class (or for each split, then class), tars, a TFDS name or directory, or `run`: what the model
was trained on, where every split but `train` is what it held out. Prompts are those that lie beside the data, or those
that OpenAI published for a data set of this name. Each suite prints a table, and writes SUITE.json after every data
set. Where several suites are asked for, those that do not apply to a data set leave it out. What cannot be measured is
noted there and on the terminal; the others are measured all the same, and the exit code is 2 at the end.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

import clip_jax
import dalle_jax
from clip_jax.weights.opening import is_published
from dalle_jax.code_version import code_version
from dalle_jax.config import write_json
from dalle_jax.data.config import SourceKind, TarKey
from dalle_jax.errors import UserError, closest
from dalle_jax.run_record import read_run
from dalle_jax.storage import as_path
from dalle_jax.training.parallel.processes import is_primary
from launch.cli import start
from launch.evaluation import linear_probe, retrieval, shapes, zero_shot
from launch.evaluation.datasets import Classes, DataFlags, named_prompts
from launch.evaluation.results import Results, check
from launch.run.coordination import check_processes

MODEL = flags.DEFINE_string("model", None, "work directory of the trained run, or published weights", required=True)
SUITE = flags.DEFINE_list("suite", ["shapes"], "what to measure: shapes, zero_shot, linear_probe, retrieval")
OUT = flags.DEFINE_string(
    "out", None, "folder for the results; default: report/ in the work directory; of published weights, ./report"
)
DATA = flags.DEFINE_multi_string("data", [], "a data set; may be given several times")
SPLIT = flags.DEFINE_string("split", "test", "what is measured: of TFDS, CLIP_benchmark, or what {split} stands for")
TRAIN_SPLIT = flags.DEFINE_string("train_split", "train", "what linear probes are fitted on")
VALIDATION_SPLIT = flags.DEFINE_string(
    "validation_split", "", "what chooses the penalty; default: a fifth of each class"
)
PROMPTS = flags.DEFINE_string("prompts", "", "one of the 27 published sets, such as CIFAR10, or a JSON file")
CLASSES = flags.DEFINE_enum_class(
    "classes", Classes.MATCH, Classes, "how labels and the prompts' classes come together"
)
PREFIX = flags.DEFINE_string("caption_prefix", "", "put before captions in retrieval; the paper's: 'a photo of '")
KEY = flags.DEFINE_enum_class("key", TarKey.FIRST_DOT, TarKey, "of tars: up to which dot a name is a sample's key")
CAPTION_FIELD = flags.DEFINE_string("caption_field", "", "of .json members, tables and TFDS; default: the usual names")
IMAGE_FIELD = flags.DEFINE_string("image_field", "", "of tables and TFDS; default: the usual names")
LABEL_FIELD = flags.DEFINE_string(
    "label_field", "", "of TFDS; default: what the data set calls its label, or the only one there is"
)
WEIGHTS_KEY = flags.DEFINE_string(
    "weights_key", None, "of --model: the state dict to read of a file that holds several, such as state_dict_ema"
)
WEIGHTS_PREFIX = flags.DEFINE_string(
    "weights_prefix", None, "of --model: what the names of its tensors begin with, where the file holds others too"
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images or captions at once on a device", lower_bound=1)

COLUMNS = {
    "zero_shot": ("data", "pictures", "classes", "metric", "result", "accuracy", "top5_accuracy", "mean_per_class"),
    "linear_probe": ("data", "pictures", "classes", "metric", "result", "accuracy", "mean_per_class", "l2_strength"),
    "retrieval": (
        "data",
        "pictures",
        "captions",
        *(f"{x}_recall_at_{k}" for x in ("text", "image") for k in (1, 5, 10)),
    ),
}
"""Of the tables."""

SUITES = ("shapes", *COLUMNS)


def main() -> None:
    """Runs the suites one after the other."""
    for name in SUITE.value:
        if name not in SUITES:
            raise UserError(f"--suite: there is no '{name}'{closest(name, SUITES)} (known: {', '.join(SUITES)})")
        if name != "shapes" and not DATA.value:
            raise UserError(f"--suite={name} measures on data: name some with --data=...")
    if PROMPTS.value:
        named_prompts(PROMPTS.value)  # a slip here would fail every data set in turn
    check_processes()
    model = as_path(MODEL.value)
    out = as_path(OUT.value) if OUT.value else epath.Path("report") if is_published(model) else model / "report"
    results = []
    for name in SUITE.value:
        if name == "shapes":
            report = run_shapes(MODEL.value, out)
            if is_primary():
                write_json(out / "report.json", report)
                print_shapes(report)
                print(f"images: {out / 'grid.png'}; figures: {out / 'report.json'}")
        else:
            results.append(run_suite(name, out))
            if is_primary():
                print_table(results[-1].rows, COLUMNS[name])
                print(f"figures: {out / f'{name}.json'}")
    if results:
        check(results, DATA.value)


@functools.cache
def load_clip() -> clip_jax.Clip:
    """The model, loaded once for all suites; it cuts long captions, as the published evaluations do."""
    return clip_jax.load(
        MODEL.value,
        batch_size=BATCH_SIZE.value,
        key=WEIGHTS_KEY.value,
        prefix=WEIGHTS_PREFIX.value,
        truncate=True,
    )


def run_suite(name: str, out: epath.Path) -> Results:
    """A suite on every data set; its file is whole after each."""
    about = DataFlags(
        model=MODEL.value,
        prompts=PROMPTS.value,
        classes=CLASSES.value,
        caption_field=CAPTION_FIELD.value,
        image_field=IMAGE_FIELD.value,
        label_field=LABEL_FIELD.value,
        key=KEY.value,
    )
    clip = load_clip()
    suites: Mapping[str, Callable[[str], dict[str, Any]]] = {
        "zero_shot": lambda data: zero_shot.evaluate(clip, data, SPLIT.value, about),
        "retrieval": lambda data: retrieval.evaluate(clip, data, SPLIT.value, about, PREFIX.value),
        "linear_probe": lambda data: linear_probe.evaluate(
            clip, data, SPLIT.value, about, TRAIN_SPLIT.value, VALIDATION_SPLIT.value
        ),
    }
    results, run = Results(name), {"model": MODEL.value, "commit": code_version()}
    for data in DATA.value:
        if len(DATA.value) == len(SUITE.value) == 1:
            results.rows.append(suites[name](data))  # what goes wrong is the one thing to say
        else:
            results.add(data, suites[name], may_skip=len(SUITE.value) > 1)
        if is_primary():
            write_json(out / f"{name}.json", run | results.report())
    return results


def run_shapes(workdir: str, out: epath.Path) -> dict:
    """The suite of drawn scenes on a run's codec, decoder and CLIP."""
    data = read_run(workdir).data
    if data.source != SourceKind.SHAPES:
        raise UserError(f"--suite=shapes measures runs on the drawn scenes; {workdir} was trained on other data")
    dalle, clip = dalle_jax.load(workdir), load_clip()
    report = shapes.evaluate(dalle, clip, out, data.shapes.max_objects)
    seconds = round(shapes.seconds_until_now(workdir), 1)
    return report | {"seconds": seconds, "commit": code_version(), "workdir": workdir}


def print_shapes(report: dict) -> None:
    """A line a figure; those by attribute under one heading."""
    attributes = [name for name in report["chance"] if name != "mean"]
    print(f"{'':32}{'mean':>8}  {'95% interval':16}" + "".join(f"{name:>12}" for name in attributes))
    for name, value in report.items():
        if isinstance(value, dict):
            interval = "{:.3f} to {:.3f}".format(*value["interval_95"]) if "interval_95" in value else ""
            cells = "".join(f"{value[attribute]:12.3f}" for attribute in attributes)
            print(f"{name:32}{value['mean']:8.3f}  {interval:16}{cells}")
    for name, value in report.items():
        if not isinstance(value, dict):
            print(f"{name:32}{value if value is not None else '-':>8}")


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A line a data set; shares as they are, `-` for what does not apply. Nothing where there are no rows."""
    if not rows:
        return
    cells = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    start(main)
