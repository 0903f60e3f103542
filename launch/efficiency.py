"""The figure that founded CLIP (Radford et al. 2021, Fig. 2): how many images each objective needs for an accuracy.

    python -m launch.efficiency --config=configs/efficiency.py --workdir=W

trains one image tower on one stream of data by three objectives (`clip_jax.objectives`): a caption language model,
bag-of-words prediction, and bag-of-words contrastive. Each is searched over the same learning rates with the first
seed; the best of them, by final zero-shot accuracy on the held-out images, then runs with every other seed. W gets
efficiency.json, efficiency.csv (every point of every run) and efficiency.png. Runs that are done are not run again. A
run that diverges is left out, be it of the search or with another seed: a line says so, and `left_out` of the JSON.

The ratio of two objectives is that of the images each has processed when it first reaches the highest accuracy that
both reach. Curves are straight between evaluations and begin at chance; the spread is over all pairs of seeds. What the
paper leaves unstated (targets, scoring) is chosen in `clip_jax.objectives`. What is held out needs labels; what is
trained on needs captions alone.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Int

from clip_jax.evaluation.prompts import published_prompts
from clip_jax.objectives import TASKS, Objective
from dalle_jax.code_version import code_version
from dalle_jax.config import from_config_dict, write_json
from dalle_jax.data.account import in_lines
from dalle_jax.data.class_captions import ClassCaptions, fill
from dalle_jax.data.config import TextConfig
from dalle_jax.data.records import Source
from dalle_jax.data.sources import EVAL, TRAIN, open_source
from dalle_jax.data.tokenizer import RowTokenizer
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path
from dalle_jax.training.checkpoints.workdir import read_workdir
from dalle_jax.training.loop import train
from dalle_jax.training.parallel.processes import from_primary, is_primary
from dalle_jax.training.telemetry.rows import NotFinite
from launch.cli import define_config, start
from launch.evaluation.efficiency_report import describe, plot, read_curve, summarise, write_csv
from launch.run.config import EfficiencyConfig, RunConfig, held_out_as_begun, open_data
from launch.run.coordination import begin, check_processes
from launch.run.initialization import find_tokenizer
from launch.run.stages import StagePlan, make_batches

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs and the figure", required=True)


_POINTS = ("num_steps", "eval_every", "eval_batches")
"""Of `config.clip.train`: where the points of the curves lie, and what they are."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What all runs of the figure share."""

    config: EfficiencyConfig
    tokenizer: RowTokenizer
    classes: Int[np.ndarray, "classes templates T"]
    """Captions of the classes, in the order of the labels."""
    held_out: Source
    """What is scored. Images need a class for that and no caption: those without one have the class's."""
    workdir: epath.Path


def main() -> None:
    """Trains what is not trained yet, and plots."""
    config, workdir = from_config_dict(EfficiencyConfig, CONFIG()), as_path(WORKDIR.value)
    check_processes(config=config)
    config = dataclasses.replace(config, data=held_out_as_begun(config.data, workdir))
    from_primary(lambda: check_same_points(config, workdir))
    sources = open_data(config.data, as_begun=(workdir / "config.json").exists())
    names = class_names(config)
    about = _run_config(config, 0)
    tokenizer = find_tokenizer(about, workdir)
    assert tokenizer is not None
    begin(config, sources, workdir, tokenizer)
    if is_primary():
        print(in_lines(config.data, sources), file=sys.stderr, flush=True)
    held_out = sources[EVAL]
    if not held_out.part_names:  # a mixture's parts have weights, which would be lost
        held_out = ClassCaptions(held_out, config.templates, names)
    experiment = Experiment(config, tokenizer, class_ids(config, names, tokenizer), held_out, workdir)
    left_out: list[dict[str, Any]] = []
    runs = {objective: search(experiment, objective, left_out) for objective in Objective}
    if is_primary():
        report = summarise(runs, 1 / len(names))
        write_report(report | {"left_out": left_out}, workdir)


def class_names(config: EfficiencyConfig) -> list[str]:
    """What captions call the classes, in the order of the data's labels.

    Raises:
      UserError: the held-out data have no labels, or name other classes than `config.prompts`.
    """
    prompts = published_prompts(config.prompts)
    source = open_source(config.data, EVAL, as_begun=True)
    if not source.has_labels:
        raise UserError(
            f"what is held out has no labels ({source.name}): zero-shot accuracy needs a class for each image"
        )
    if source.class_names:
        try:
            prompts = prompts.in_order_of(source.class_names)
        except UserError as error:
            raise UserError(f"{error}: set config.prompts to the published set that the data are of") from error
    return [several[0] for several in prompts.classes]


def check_same_points(config: EfficiencyConfig, workdir: epath.Path) -> None:
    """Whether the runs of a folder can be plotted beside those that are to come.

    Any other run may be made longer or evaluated more often. Here that would put points of other places, and runs
    whose learning rate falls along another curve, into one figure.

    Raises:
      UserError: it was begun with other steps or evaluations.
    """
    if not (workdir / "config.json").exists():
        return
    there = (read_workdir(workdir).get("clip") or {}).get("train", {})
    now = dataclasses.asdict(config.clip.train)
    changed = [f"{key} ({there[key]} there, {now[key]} now)" for key in _POINTS if there.get(key, now[key]) != now[key]]
    if changed:
        raise UserError(
            f"{workdir} holds runs of another config.clip.train: {', '.join(changed)}; all runs of a figure have "
            "the same: set it back or choose another --workdir"
        )


def write_report(report: dict[str, Any], workdir: epath.Path) -> None:
    """The figure, its points, and the ratios."""
    write_json(workdir / "efficiency.json", report | {"commit": code_version()})
    write_csv(workdir / "efficiency.csv", report["runs"])
    plot(report).save(workdir / "efficiency.png")
    for name, ratio in report["ratios"].items():
        print(f"{name}: {describe(ratio)}")
    print(f"figure: {workdir / 'efficiency.png'}; points: {workdir / 'efficiency.csv'}")


def search(experiment: Experiment, objective: Objective, left_out: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of an objective: every learning rate with the first seed, the best with all.

    Args:
      experiment: what all runs share.
      objective: what is trained by.
      left_out: gets the runs that diverged, with the reason.

    Raises:
      UserError: it diverges at every rate.
    """

    def try_run(rate: float, seed: int) -> list[dict[str, Any]]:
        try:
            return [run(experiment, objective, rate, seed)]
        except NotFinite as error:
            left_out.append({"objective": objective.value, "learning_rate": rate, "seed": seed, "reason": str(error)})
            print(f"{objective.value}: the learning rate {rate:g}, seed {seed}, is left out: {error}", file=sys.stderr)
            return []

    first, *others = experiment.config.seeds
    runs = [found for rate in experiment.config.learning_rates for found in try_run(rate, first)]
    if not runs:
        raise UserError(f"{objective.value} diverges at every one of config.learning_rates: give lower ones")
    best = max(runs, key=lambda found: found["curve"][-1][1])
    best["chosen"] = True
    again = [found for seed in others for found in try_run(best["learning_rate"], seed)]
    return runs + [found | {"chosen": True} for found in again]


def run(experiment: Experiment, objective: Objective, rate: float, seed: int) -> dict[str, Any]:
    """Trains one tower, or goes on with it, and reads its curve."""
    config, tokenizer = experiment.config, experiment.tokenizer
    folder = experiment.workdir / objective.value / f"rate_{rate:g}_seed_{seed}"
    optimizer = dataclasses.replace(config.clip.train.optimizer, learning_rate=rate)
    stage = dataclasses.replace(config.clip, train=dataclasses.replace(config.clip.train, optimizer=optimizer))
    task = TASKS[objective](stage, experiment.classes)
    text = TextConfig(length=config.clip.model.text.context_length, end=True)
    vision = config.clip.model.vision
    plan = StagePlan(task, stage.train, stage.augment, vision.image_size, text, resizing=vision.resizing)
    about = _run_config(config, seed)
    train(
        task,
        stage.train,
        mesh_config=config.mesh,
        batches=make_batches(about, plan, tokenizer, TRAIN),
        eval_batches=make_batches(about, plan, tokenizer, EVAL, experiment.held_out),
        workdir=folder,
        seed=seed,
    )
    curve = from_primary(lambda: read_curve((folder / "metrics.jsonl").read_text(), stage.train.batch_size))
    return {"objective": objective.value, "learning_rate": rate, "seed": seed, "chosen": False, "curve": curve}


def class_ids(
    config: EfficiencyConfig, names: Sequence[str], tokenizer: RowTokenizer
) -> Int[np.ndarray, "classes templates T"]:
    """Token ids of every name in every template."""
    length = config.clip.model.text.context_length
    captions = [fill(template, name) for name in names for template in config.templates]
    ids = np.stack([tokenizer.row(caption, TextConfig(length, end=True), seed=0)[0] for caption in captions])
    return ids.reshape(len(names), len(config.templates), length)


def _run_config(config: EfficiencyConfig, seed: int) -> RunConfig:
    return RunConfig(data=config.data, seed=seed, mesh=config.mesh, tokenizer=config.tokenizer, clip=config.clip)


if __name__ == "__main__":
    start(main, preemptible=True)
