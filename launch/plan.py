"""Plans a run before anything is rented: `python -m launch.plan --config=configs/X.py --topology=v5e-256`.

Compiles the real training step of every stage (or, with `--mode=generate`, the sampler) for TPUs that need not be here,
and prints memory, transfers, FLOPs, the bound of a step and the days of the run. Needs the `tpu` extra, and minutes of
one core for the largest models. Topologies: v4-N, v5e-N, v5p-N, v6e-N, and several slices as 2xv5e-256.
"""

from pathlib import Path

import jax
from absl import flags

from dalle_jax.config import to_json
from dalle_jax.errors import UserError
from launch.cli import config_name, define_config, overridden, start
from launch.planning.plans import plan_sampling, plan_training
from launch.planning.published import write_page
from launch.planning.record import Plan, plan_dict
from launch.planning.report import table
from launch.planning.topologies import find_topology, require_compiler
from launch.run.config import RunConfig
from launch.run.stages import choose_stages, read_run_config

CONFIG = define_config(optional=["init_from"])
TOPOLOGY = flags.DEFINE_string("topology", None, "chips to plan for: v5e-256, v4-256, v5p-128, 2xv5e-256, ...")
MODE = flags.DEFINE_enum("mode", "train", ["train", "generate"], "plan training, or sampling images")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 512, "with --mode=generate: images of one caption sampled at once")
STAGES = flags.DEFINE_list("stages", [], "plan only these of the config's stages: codec, decoder, clip, say")
JSON = flags.DEFINE_bool("json", False, "print JSON instead of a table")
ALL = flags.DEFINE_bool("all", False, "make the page of the published configs (--out)")
OUT = flags.DEFINE_string("out", "docs/plans.md", "with --all: the page; plans that the JSON beside it holds are kept")


def main() -> None:
    """Makes the plans that the flags ask for and prints them."""
    # The compiler needs no device, and must find none: a TPU of this machine, if any, belongs to others.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    if ALL.value:
        require_compiler()
        write_page(Path(OUT.value))
        return
    plans = _plans(read_run_config(CONFIG()))
    print(to_json(list(map(plan_dict, plans))) if JSON.value else "\n\n".join(map(table, plans)))


def _plans(run: RunConfig) -> list[Plan]:
    if TOPOLOGY.value is None:
        raise UserError("no topology given: --topology=v5e-256, say")
    topology, config, given = find_topology(TOPOLOGY.value), config_name(), overridden("mesh")
    if MODE.value == "generate":
        if run.decoder is None:
            raise UserError("--mode=generate needs a config with a decoder")
        return [plan_sampling(config, run, topology, NUM_SAMPLES.value, given)]
    return [plan_training(config, run, stage, topology, given) for stage in choose_stages(run, STAGES.value)]


if __name__ == "__main__":
    start(main, alone=True)
