"""Trains a stage of a run that was prepared."""

import dataclasses

from dalle_jax.codec import FrozenCodec
from dalle_jax.codec.compatibility import pin_codec
from dalle_jax.data.sources import EVAL, TRAIN
from dalle_jax.training.loop import train
from dalle_jax.training.parallel.processes import is_primary
from launch.run.initialization import initial_params
from launch.run.preparation import PreparedRun
from launch.run.stages import make_batches


@dataclasses.dataclass(frozen=True)
class Watch:
    """What else a person may ask for while a run trains."""

    profile_steps: tuple[int, int] | None = None
    wandb: str = ""


def train_stage(name: str, prepared: PreparedRun, watch: Watch, began: float | None = None) -> None:
    """Trains a stage to its end, or goes on where it was stopped; `began` as in `train`."""
    run, sources, plan = prepared.run, prepared.sources, prepared.take_plan(name)
    stage_dir = prepared.workdir / name
    if isinstance(plan.codec, FrozenCodec) and is_primary():
        pin_codec(plan.codec, stage_dir)
    batches = {split: make_batches(run, plan, prepared.tokenizer, split, source) for split, source in sources.items()}
    train(
        plan.task,
        plan.train,
        mesh_config=run.mesh,
        batches=batches[TRAIN],
        eval_batches=batches.get(EVAL),
        workdir=stage_dir,
        seed=run.seed,
        init_from=initial_params(run, name),
        profile_steps=watch.profile_steps,
        wandb=watch.wandb,
        began=began,
    )
