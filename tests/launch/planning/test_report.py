"""Tables of a fixed plan, word by word; its JSON; the page of several plans."""

import dataclasses
import json

import pytest

from configs import clip
from dalle_jax.config import to_json
from launch.planning import published
from launch.planning.collectives import Collective
from launch.planning.pages import page
from launch.planning.record import DERIVED, CacheRow, Change, Plan, plan_dict, read_plan
from launch.planning.report import table
from launch.planning.roofline import Roofline

GIB = 2**30
PLAN = Plan(
    config="configs/x.py",
    stage="decoder",
    topology="2xv5e-256",
    chips=512,
    mesh=(2, 16, 16),
    notes=("a note",),
    batch_size=1024,
    num_steps=430_000,
    parameters=12_345_678_901,
    state_bytes=GIB // 2,
    peak_bytes=8 * GIB,
    memory_bytes=16 * GIB,
    accepted=True,
    useful_flops=1e17,
    formula="Six per weight.",
    executed_flops=1.25e17,
    transfers=(
        Collective("all-gather", ("fsdp", "tensor"), 120, 24.6e9, 0.0),
        Collective("all-reduce", ("data",), 1, 0.0, 0.048e9),
    ),
    traffic_bytes=1e12,
    seconds=Roofline(compute=1.24, memory=0.5, links=0.25, network=0.0154),
    days_at_bound=6.17,
    days_published=(10.9, 12.04),
    compile_seconds=270.4,
)
TABLE = """\
decoder of configs/x.py on 2xv5e-256: 512 chips as data 2 x fsdp 16 x tensor 16, batch 1,024
  parameters        12,345,678,901
  memory a chip     8.00 of 16.00 GiB (50%): state 0.50, temporaries 7.50
  FLOPs a step      1e+17 useful, 1.25e+17 executed: 1.250 times
    useful          Six per weight.
  sent by a chip    all-gather over fsdp x tensor, 120 a step: 24.6 GB within a slice
                    all-reduce over data, 1 a step: 0 kB within a slice, 48 MB between slices
  a step takes      at least: compute 1.24 s, memory 500 ms, links 250 ms, network 15.4 ms
  bound by          compute
  steps a day       69,677 at the bound
  430,000 updates   6.2 days at the bound, 10.9 to 12.0 at the utilisation of published runs
  note              a note
  compiled in       270 s"""
SAMPLING = dataclasses.replace(
    PLAN,
    stage="sampling",
    batch_size=512,
    num_steps=1024,
    useful_flops=0.0,
    formula="",
    days_at_bound=None,
    days_published=None,
    transfers=(),
    notes=(),
    caches=(CacheRow("row", 47, 32, 23_900_000, 23_900_000), CacheRow("column", 16, 1024, 260_000_000, 8_100_000)),
)
REFUSED = dataclasses.replace(
    PLAN,
    accepted=False,
    peak_bytes=20 * GIB,
    seconds=None,
    days_at_bound=None,
    transfers=(),
    change=Change(("--config.decoder.train.micro_batches=2",), 11 * GIB, 10 * GIB),
)


def test_table():
    assert table(PLAN) == TABLE


def test_table_of_sampling():
    lines = table(SAMPLING).splitlines()
    assert lines[0].endswith("512 images of one caption")
    assert "  caches an image   row: 47 layers x 32 positions, 23.9 MB kept, 23.9 MB read a token" in lines
    assert "                    column: 16 layers x 1024 positions, 260.0 MB kept, 8.1 MB read a token" in lines
    assert "  all images        1269.8 s at the bound, 1,024 tokens each" in lines


def test_table_of_what_does_not_fit():
    text = table(REFUSED)
    assert "20.00 of 16.00 GiB (125%, does not fit)" in text
    assert "--config.decoder.train.micro_batches=2: estimated 11.00 GiB, compiled 10.00 GiB" in text
    assert "take more or larger chips" in table(dataclasses.replace(REFUSED, change=None))
    nearly = dataclasses.replace(PLAN, peak_bytes=15 * GIB, change=REFUSED.change)
    assert "(94%, little is left)" in table(nearly) and "micro_batches=2" in table(nearly)


def test_table_of_a_drawing_that_does_not_fit():
    """Nothing of training is proposed, nor said to have been tried."""
    refused = dataclasses.replace(SAMPLING, accepted=False, seconds=None)
    text = table(refused)
    assert "neither fewer images at once nor a finer mesh suffices: take more or larger chips" in text
    assert "micro-batches" not in text and "recomputation" not in text
    text = table(dataclasses.replace(refused, change=Change(("--num_samples=256",), 11 * GIB, 10 * GIB)))
    assert "--num_samples=256: estimated 11.00 GiB, compiled 10.00 GiB" in text and "--max_sequences" in text


@pytest.mark.parametrize("plan", [PLAN, SAMPLING, REFUSED])
def test_plans_survive_json(plan):
    """With what follows from the fields, and without, as plans were kept at first."""
    for kept in (plan_dict(plan), dataclasses.asdict(plan)):
        assert read_plan(json.loads(to_json(kept)), "a plan") == plan


def test_json_says_what_the_table_says():
    found = {name: json.loads(to_json(plan_dict(PLAN)))[name] for name in DERIVED}
    assert found == {
        "fits": True,
        "temporary_bytes": 15 * GIB // 2,
        "executed_over_useful": 1.25,
        "bound": "compute",
        "steps_a_day": pytest.approx(86_400 / 1.24),
        "drawing_seconds": None,
    }
    drawn, refused = plan_dict(SAMPLING), plan_dict(REFUSED)
    assert drawn["drawing_seconds"] == pytest.approx(1269.76)
    assert drawn["steps_a_day"] is None and drawn["executed_over_useful"] is None
    assert not refused["fits"] and refused["bound"] is None and refused["steps_a_day"] is None


def test_the_page_is_made_of_plans_with_and_without_what_follows(monkeypatch):
    request = published.Request("configs/x.py", "2xv5e-256")
    monkeypatch.setattr(published, "PUBLISHED", (request,))
    pages = {
        published.render(json.loads(to_json({request.name: kept})))
        for kept in (plan_dict(PLAN), dataclasses.asdict(PLAN))
    }
    assert pages == {page([PLAN])}


def test_every_published_clip_is_planned():
    planned = {request.config for request in published.PUBLISHED}
    assert {f"configs/clip.py:{name}" for name in clip.PRESETS | clip.SIGLIP_PRESETS} <= planned


def test_page_has_a_section_for_every_config_and_each_plan_in_full():
    text = page([PLAN, dataclasses.replace(PLAN, topology="v5e-256"), SAMPLING])
    assert text.count("\n## configs/x.py") == 2
    assert '??? note "v5e-256 in full"' in text and "        sampling of configs/x.py" in text
    row = "| 2xv5e-256 | 2x16x16 | 0.50 GiB | 8.00 of 16.00 GiB (50%) | 1.250 |"
    assert row in text and "| compute | 6.2; 10.9 to 12.0 |" in text
