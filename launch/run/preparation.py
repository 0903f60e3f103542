"""Finds what is wrong with a run before its first stage trains, and opens once what its stages use."""

import dataclasses
import sys

from etils import epath

from dalle_jax.config import from_config_dict
from dalle_jax.data.records import Source
from dalle_jax.training.checkpoints.workdir import check_workdir, read_workdir, saved_steps
from dalle_jax.training.config import OptimizerConfig
from dalle_jax.training.optimizer import new_course
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.processes import is_primary
from dalle_jax.training.parallel.sharding import ShardingRules, check_batch
from launch.run.config import RunConfig, open_data
from launch.run.coordination import AnyTokenizer
from launch.run.initialization import check_init_from, check_init_from_params, find_tokenizer
from launch.run.stages import STAGES, StagePlan, check_source


@dataclasses.dataclass(frozen=True)
class PreparedRun:
    """A run that was found to fit together, with what was opened to find that out."""

    run: RunConfig
    workdir: epath.Path
    stages: tuple[str, ...]
    """Those that are trained now, in order."""
    sources: dict[str, Source]
    """By split."""
    plans: dict[str, StagePlan]
    """Of the stages. A decoder's is made of its codec's sizes alone where that is yet to be trained."""
    tokenizer: AnyTokenizer | None

    def take_plan(self, name: str) -> StagePlan:
        """The plan of a stage that is about to be trained, which nothing holds on to afterwards."""
        plan = self.plans.pop(name)
        # Its codec has been trained since.
        return STAGES[name].plan(self.run, self.workdir, True) if name == "decoder" and "codec" in self.stages else plan


def prepare_run(run: RunConfig, workdir: epath.Path, stages: list[str]) -> PreparedRun:
    """Checks all stages before the folder of a new run is made, and opens data, codec and tokenizer.

    A config that is refused will be another one next time, and its folder would be in the way of that.

    Args:
      run: the config.
      workdir: of the run; it need not be there.
      stages: to train.

    Raises:
      UserError: naming what does not fit, and what to do.
    """
    mesh, rules = make_mesh(run.mesh), ShardingRules.of(run.mesh)
    for name in stages:
        config = getattr(run, name).train
        check_batch(config.batch_size, config.micro_batches, mesh, rules)
    begun = (workdir / "config.json").exists()
    if begun:
        check_workdir(workdir, run)
        _warn_of_rates(run, workdir, stages)
    sources = open_data(run.data, as_begun=begun)
    check_init_from(run, workdir, stages)
    plans = {name: STAGES[name].plan(run, workdir, "codec" not in stages) for name in stages}
    for source in sources.values():
        for plan in plans.values():
            check_source(source, plan)
    tokenizer = find_tokenizer(run, workdir)
    check_init_from_params(run, workdir, {name: plan.task for name, plan in plans.items()})
    return PreparedRun(run, workdir, tuple(stages), sources, plans, tokenizer)


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
