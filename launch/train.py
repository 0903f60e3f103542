"""Trains the stages of a config: `python -m launch.train --config=configs/X.py --workdir=W [--config.a.b=value]`.

The same command goes on with a run that was stopped. `--print_config` shows the resolved config, `--dry_run` checks
config, data and sizes without training.
"""

import dataclasses
import sys

import jax
from absl import flags

from dalle_jax.config import to_json
from dalle_jax.data.account import in_lines
from dalle_jax.data.sources import TRAIN
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.freezing import Freezing
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.processes import is_primary
from dalle_jax.training.parallel.sharding import ShardingRules
from dalle_jax.training.program import build_step
from dalle_jax.training.telemetry.attempts import read_attempts
from dalle_jax.training.telemetry.clock import process_began
from launch.cli import define_config, start
from launch.run.config import held_out_as_begun, with_absolute_paths
from launch.run.coordination import begin, check_processes
from launch.run.preparation import PreparedRun, prepare_run
from launch.run.process_settings import set_deterministic
from launch.run.stages import StagePlan, choose_stages, make_batches, read_run_config
from launch.run.startup import starting
from launch.run.training import Watch, train_stage

CONFIG = define_config(optional=["init_from"])
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made where it does not exist")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the resolved config as JSON and stop")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "check everything up to the first step and stop")
STAGES = flags.DEFINE_list("stages", [], "train only these of the config's stages: codec, decoder, clip, say")
PROFILE = flags.DEFINE_list("profile_steps", [], "FIRST,LAST step of a profiler trace in W/STAGE/profile")
WANDB = flags.DEFINE_string("wandb", "", "project of Weights & Biases to log to as well (needs the wandb package)")


def main() -> None:
    """Reads the config, checks it, opens the work directory and trains stage after stage."""
    run = read_run_config(CONFIG())
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
        prepared = prepare_run(run, workdir, stages)
        if is_primary():
            print(in_lines(run.data, prepared.sources))
        for name, plan in prepared.plans.items():
            _describe(name, prepared, plan)
        return
    with starting(workdir) as ready:
        prepared = prepare_run(run, workdir, stages)
        begin(run, prepared.sources, workdir, prepared.tokenizer)
        ready()
        unfinished = [n for n in stages if getattr(run, n).train.num_steps not in saved_steps(workdir / n)]
        if is_primary() and unfinished:
            print(in_lines(run.data, prepared.sources), file=sys.stderr, flush=True)
        began = process_began()
        for name in stages:
            train_stage(name, prepared, watch, began)
            began = max([began, *(start.beat for start in read_attempts(workdir / name))])


def _profile_steps() -> tuple[int, int] | None:
    if not PROFILE.value:
        return None
    try:
        first, last = map(int, PROFILE.value)
    except ValueError:
        raise UserError(f"--profile_steps={','.join(PROFILE.value)}: give FIRST,LAST") from None
    return first, last


def _describe(name: str, prepared: PreparedRun, plan: StagePlan) -> None:
    """Makes everything up to the first step and prints what the stage will cost."""
    run = prepared.run
    mesh, rules = make_mesh(run.mesh), ShardingRules.of(run.mesh)
    program = build_step(plan.task, plan.train, mesh, rules)
    make_batches(run, plan, prepared.tokenizer, TRAIN, prepared.sources[TRAIN])[0]
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
