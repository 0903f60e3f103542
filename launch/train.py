"""Trains the stages of a config: `python -m launch.train --config=configs/X.py --workdir=W [--config.a.b=value]`.

The same command goes on with a run that was stopped. `--print_config` shows the resolved config, `--dry_run` checks
config, data and sizes without training.
"""

import dataclasses
import sys

import jax
from absl import flags
from etils import epath

from dalle_jax.config import from_config_dict, to_json
from dalle_jax.data.account import in_lines
from dalle_jax.data.records import Source
from dalle_jax.data.sources import TRAIN, open_splits
from dalle_jax.data.tokenizer import RowTokenizer
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path
from dalle_jax.training.checkpoints.workdir import check_workdir, read_workdir, saved_steps
from dalle_jax.training.config import OptimizerConfig
from dalle_jax.training.freezing import Freezing
from dalle_jax.training.optimizer import new_course
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.processes import is_primary
from dalle_jax.training.parallel.sharding import ShardingRules, check_batch
from dalle_jax.training.program import build_step
from dalle_jax.training.telemetry.attempts import read_starts
from dalle_jax.training.telemetry.clock import process_began
from launch.cli import define_config, start
from launch.run.config import RunConfig, check_data_options, held_out_as_begun, with_absolute_paths
from launch.run.coordination import AnyTokenizer, begin, check_processes
from launch.run.initialization import check_base, check_base_run, find_tokenizer
from launch.run.process_settings import set_deterministic
from launch.run.stages import PLANS, StagePlan, Watch, check_source, choose_stages, make_batches, train_stage
from launch.run.startup import starting

CONFIG = define_config(optional=["init_from"])
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made where it does not exist")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the resolved config as JSON and stop")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "check everything up to the first step and stop")
STAGES = flags.DEFINE_list("stages", [], "train only these of the config's stages: codec, decoder, clip")
PROFILE = flags.DEFINE_list("profile_steps", [], "FIRST,LAST step of a profiler trace in W/STAGE/profile")
WANDB = flags.DEFINE_string("wandb", "", "project of Weights & Biases to log to as well (needs the wandb package)")


def main() -> None:
    """Reads the config, checks it, opens the work directory and trains stage after stage."""
    run = from_config_dict(RunConfig, CONFIG())
    if PRINT_CONFIG.value:
        print(to_json(run))
        return
    if WORKDIR.value is None:
        raise UserError("no work directory given: --workdir=FOLDER")
    run, workdir = with_absolute_paths(run), as_path(WORKDIR.value)
    stages, watch = choose_stages(run, STAGES.value), Watch(_profile_steps(), WANDB.value)
    if any(getattr(run, name).train.deterministic for name in stages):
        set_deterministic()
    check_processes(config=run)
    run = dataclasses.replace(run, data=held_out_as_begun(run.data, workdir))
    if DRY_RUN.value:
        sources, plans, tokenizer = _check(run, workdir, stages)
        if is_primary():
            print(in_lines(run.data, sources))
        for name, plan in plans.items():
            _describe(name, run, plan, tokenizer)
        return
    with starting(workdir) as ready:
        sources, _, tokenizer = _check(run, workdir, stages)
        begin(run, sources, workdir, tokenizer)
        ready()
        if is_primary() and any(_is_unfinished(run, workdir, name) for name in stages):
            print(in_lines(run.data, sources), file=sys.stderr, flush=True)
        began = process_began()
        for name in stages:
            train_stage(name, run, workdir, tokenizer, watch, began)
            began = max([began, *(start.beat for start in read_starts(workdir / name))])


def _check(
    run: RunConfig, workdir: epath.Path, stages: list[str]
) -> tuple[dict[str, Source], dict[str, StagePlan], AnyTokenizer | None]:
    """Finds what is wrong with any stage before the first one trains, and before the folder of a new run is made.

    A config that is refused will be another one next time, and its folder would be in the way of that.
    """
    mesh, rules = make_mesh(run.mesh), ShardingRules.of(run.mesh)
    for name in stages:
        config = getattr(run, name).train
        check_batch(config.batch_size, config.micro_batches, mesh, rules)
    if (workdir / "config.json").exists():
        check_workdir(workdir, run)
        _warn_of_rates(run, workdir, stages)
    else:
        check_data_options(run.data)
    sources = open_splits(run.data)
    check_base(run, workdir, stages)
    plans = {name: PLANS[name](run, workdir, "codec" not in stages) for name in stages}
    for source in sources.values():
        for plan in plans.values():
            check_source(source, plan)
    tokenizer = find_tokenizer(run, workdir)
    check_base_run(run, workdir, {name: plan.task for name, plan in plans.items()})
    return sources, plans, tokenizer


def _is_unfinished(run: RunConfig, workdir: epath.Path, stage: str) -> bool:
    return getattr(run, stage).train.num_steps not in saved_steps(workdir / stage)


def _warn_of_rates(run: RunConfig, workdir: epath.Path, stages: list[str]) -> None:
    """Says of every stage that is lengthened what its learning rate will do."""
    before = read_workdir(workdir)
    for name in stages:
        steps, now = saved_steps(workdir / name), getattr(run, name).train
        if not steps or not before.get(name):
            continue
        train = before[name]["train"]
        optimizer = from_config_dict(OptimizerConfig, train["optimizer"], f"config.{name}.train.optimizer")
        course = new_course(optimizer, train["num_steps"], now.optimizer, now.num_steps, steps[-1])
        if course and is_primary():
            print(f"warning: {name}: {course}", file=sys.stderr, flush=True)


def _profile_steps() -> tuple[int, int] | None:
    if not PROFILE.value:
        return None
    try:
        first, last = map(int, PROFILE.value)
    except ValueError:
        raise UserError(f"--profile_steps={','.join(PROFILE.value)}: give FIRST,LAST") from None
    return first, last


def _describe(name: str, run: RunConfig, plan: StagePlan, tokenizer: RowTokenizer | None) -> None:
    """Makes everything up to the first step and prints what the stage will cost."""
    mesh, rules = make_mesh(run.mesh), ShardingRules.of(run.mesh)
    program = build_step(plan.task, plan.train, mesh, rules)
    make_batches(run, plan, tokenizer, TRAIN)[0]
    freezing = Freezing.of(plan.train.optimizer)
    parameters, trained = (
        sum(x.size for x in jax.tree.leaves(params))
        for params in (program.boxed.params, jax.eval_shape(freezing.trained, program.boxed.params))
    )
    frozen = f" ({trained:,} of them trained)" if trained < parameters else ""
    flops = plan.task.step_flops(plan.train.batch_size)
    print(f"{name}: {parameters:,} parameters{frozen}, batch {plan.train.batch_size}, {plan.train.num_steps:,} steps, "
          f"{flops:.3g} useful FLOP a step; mesh {dict(mesh.shape)}")  # fmt: skip


if __name__ == "__main__":
    start(main, preemptible=True)
