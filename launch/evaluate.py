"""Measures trained models: `python -m launch.evaluate --model=W --suite=shapes [--out=DIR]`.

`shapes` needs a work directory with codec, decoder and CLIP trained on the drawn scenes. It writes report.json,
grid.png and reconstructions.png, and prints the figures.
"""

import time
from pathlib import Path

from absl import flags
from etils import epath

import clip_jax
import dalle_jax
from dalle_jax.config import write_json
from dalle_jax.errors import UserError, closest
from dalle_jax.training.workdir import code_version, read_workdir
from launch.flags import start
from launch.suites import shapes

MODEL = flags.DEFINE_string("model", None, "work directory of the trained run", required=True)
SUITE = flags.DEFINE_list("suite", ["shapes"], "what to measure: shapes")
OUT = flags.DEFINE_string("out", None, "folder for the results; default: report/ in the work directory")

SUITES = ("shapes",)


def main() -> None:
    """Runs the suites one after the other."""
    for name in SUITE.value:
        if name not in SUITES:
            raise UserError(f"--suite: there is no '{name}'{closest(name, SUITES)} (known: {', '.join(SUITES)})")
    out = Path(OUT.value) if OUT.value else Path(MODEL.value) / "report"
    report = run_shapes(MODEL.value, out)
    write_json(out / "report.json", report)
    print_table(report)
    print(f"pictures: {out / 'grid.png'}; figures: {out / 'report.json'}")


def run_shapes(workdir: str, out: Path) -> dict:
    """The suite of drawn scenes on a run's codec, decoder and CLIP."""
    run = read_workdir(workdir)
    if run["data"]["source"] != "shapes":
        raise UserError(f"--suite=shapes measures runs on the drawn scenes; {workdir} was trained on other data")
    dalle, clip = dalle_jax.load(workdir), clip_jax.load(workdir)
    report = shapes.evaluate(dalle, clip, out, run["data"]["shapes"]["max_objects"])
    began = epath.Path(workdir, "tokenizer.model").stat().mtime
    return report | {"seconds": round(time.time() - began, 1), "commit": code_version(), "workdir": workdir}


def print_table(report: dict) -> None:
    """A line a figure; those by attribute under one heading."""
    attributes = list(report["chance"])
    print(f"{'':32}{'mean':>8}  {'95% interval':16}" + "".join(f"{name:>12}" for name in attributes))
    for name, value in report.items():
        if isinstance(value, dict) and "mean" in value:
            low, high = value["interval_95"]
            cells = "".join(f"{value[attribute]:12.3f}" for attribute in attributes)
            print(f"{name:32}{value['mean']:8.3f}  {f'{low:.3f} to {high:.3f}':16}{cells}")
    print(f"{'chance':32}{'':8}  {'':16}" + "".join(f"{report['chance'][name]:12.3f}" for name in attributes))
    for name, value in report.items():
        if not isinstance(value, dict):
            print(f"{name:32}{value if value is not None else '-':>8}")


if __name__ == "__main__":
    start(main)
