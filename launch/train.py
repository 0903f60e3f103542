"""Trains the stages of a config: `python -m launch.train --config=configs/X.py --workdir=W [--config.a.b=value]`.

The same command goes on with a run that was stopped. `--print_config` shows the resolved config, `--dry_run` checks
config, data and sizes without training.
"""

import dataclasses

import jax
from absl import flags
from etils import epath

from dalle_jax.config import from_config_dict, to_json
from dalle_jax.errors import UserError
from dalle_jax.training.mesh import make_mesh
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.sharding import ShardingRules, check_batch
from dalle_jax.training.state import abstract_state, state_shardings
from dalle_jax.training.workdir import open_workdir
from launch.flags import define_config, start
from launch.run_config import RunConfig
from launch.stages import PLANS, StagePlan, Watch, make_batches, prepare_tokenizer, stages_of, train_stage

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; made where it does not exist")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the resolved config as JSON and stop")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "check everything up to the first step and stop")
STAGES = flags.DEFINE_list("stages", [], "train only these of the config's stages: codec, decoder, clip")
PROFILE = flags.DEFINE_list("profile_steps", [], "FIRST,LAST step of a profiler trace in W/STAGE/profile")
WANDB = flags.DEFINE_string("wandb", "", "project of Weights & Biases to log to as well (needs the wandb package)")


def main() -> None:
    """Reads the config, opens the work directory and trains stage after stage."""
    run = from_config_dict(RunConfig, CONFIG())
    if PRINT_CONFIG.value:
        print(to_json(run))
        return
    if WORKDIR.value is None:
        raise UserError("no work directory given: --workdir=FOLDER")
    stages = _chosen(stages_of(run))
    if DRY_RUN.value:
        for name in stages:
            _check(name, run)
        return
    workdir = open_workdir(WORKDIR.value, dataclasses.asdict(run)).path
    tokenizer = prepare_tokenizer(run, workdir)
    for name in stages:
        train_stage(name, run, workdir, tokenizer, Watch(_profile_steps(), WANDB.value))


def _chosen(stages: list[str]) -> list[str]:
    unknown = [name for name in STAGES.value if name not in stages]
    if unknown:
        raise UserError(f"--stages: the config has no stage '{unknown[0]}' (it has {', '.join(stages)})")
    return [name for name in stages if not STAGES.value or name in STAGES.value]


def _profile_steps() -> tuple[int, int] | None:
    if not PROFILE.value:
        return None
    try:
        first, last = map(int, PROFILE.value)
    except ValueError:
        raise UserError(f"--profile_steps={','.join(PROFILE.value)}: give FIRST,LAST") from None
    return first, last


def _check(name: str, run: RunConfig) -> None:
    """Everything that can go wrong before the first step, and what the stage will cost."""
    workdir = epath.Path(WORKDIR.value)
    plan: StagePlan = PLANS[name](run, workdir)
    mesh, rules = make_mesh(run.mesh), ShardingRules.of(run.mesh)
    check_batch(plan.train.batch_size, plan.train.micro_batches, mesh, rules)
    optimizer = make_optimizer(plan.train.optimizer, plan.train.num_steps)
    state = abstract_state(plan.task, optimizer, plan.train.ema_decay is not None)
    state_shardings(state, mesh, rules)
    tokenizer = prepare_tokenizer(run, workdir) if plan.text is not None else None
    make_batches(run, plan, tokenizer, "train")[0]
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    flops = plan.task.step_flops(plan.train.batch_size)
    print(f"{name}: {parameters:,} parameters, batch {plan.train.batch_size}, {plan.train.num_steps:,} steps, "
          f"{flops:.3g} useful FLOP a step; mesh {dict(mesh.shape)}")  # fmt: skip


if __name__ == "__main__":
    start(main)
