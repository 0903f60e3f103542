"""The page of plans is what its script makes of the plans beside it."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from configs import decoder_12b
from dalle_jax.config import from_config_dict
from dalle_jax.training.config import MeshConfig
from launch.planning.flops import count_flops
from launch.planning.programs import training_target
from launch.planning.published import PUBLISHED, render
from launch.planning.topologies import find_topology
from launch.run.config import RunConfig

PAGE = Path(__file__).parents[3] / "docs" / "plans.md"


@pytest.fixture(scope="module")
def plans():
    return json.loads(PAGE.with_suffix(".json").read_text())


def test_the_page_is_made_of_its_plans(plans):
    assert PAGE.read_text() == render(plans), "run: python -m launch.plan --all"


def test_every_published_plan_is_there_and_no_other(plans):
    assert set(plans) == {request.name for request in PUBLISHED}


@pytest.mark.parametrize("topology", ["v5e-256", "v6e-256", "v4-256", "v5p-128"])
def test_the_published_decoder_fits(plans, topology):
    plan = plans[f"configs/decoder_12b.py {topology}"]
    run = from_config_dict(RunConfig, decoder_12b.get_config())
    assert plan["batch_size"] == run.decoder.train.batch_size == 1024
    assert plan["peak_bytes"] <= 0.8 * plan["memory_bytes"]
    assert plan["executed_flops"] <= 1.34 * plan["useful_flops"]


def test_the_plans_are_of_this_config(plans):
    """The step of today's config and code, traced for a mesh of eight: operations are counted over all devices."""
    run = dataclasses.replace(from_config_dict(RunConfig, decoder_12b.get_config()), mesh=MeshConfig(data=1, fsdp=8))
    target, _ = training_target(run, "decoder", run.mesh, find_topology("v5e-8"), jax.devices())
    executed = count_flops(target.traced()[0].jaxpr).total
    for topology in ("v5e-256", "v4-256"):
        plan = plans[f"configs/decoder_12b.py {topology}"]
        assert executed == pytest.approx(plan["executed_flops"], rel=1e-3)
        assert target.parameters == plan["parameters"]
