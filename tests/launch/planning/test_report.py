"""Tables of a fixed plan, word by word; the page of the documentation is the one that its plans give."""

import dataclasses
import json
from pathlib import Path

from dalle_jax.config import from_config_dict, to_json
from launch.planning.collectives import Collective
from launch.planning.pages import page
from launch.planning.plans import CacheRow, Change, Plan
from launch.planning.report import table
from launch.planning.roofline import Roofline

ROOT = Path(__file__).parents[3]
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
    assert lines[0].endswith("512 pictures of one caption")
    assert "  caches a picture  row: 47 layers x 32 positions, 23.9 MB kept, 23.9 MB read a token" in lines
    assert "                    column: 16 layers x 1024 positions, 260.0 MB kept, 8.1 MB read a token" in lines
    assert "  all pictures      1269.8 s at the bound, 1,024 tokens each" in lines


def test_table_of_what_does_not_fit():
    text = table(REFUSED)
    assert "20.00 of 16.00 GiB (125%, does not fit)" in text
    assert "--config.decoder.train.micro_batches=2: estimated 11.00 GiB, compiled 10.00 GiB" in text
    assert "take more or larger chips" in table(dataclasses.replace(REFUSED, change=None))
    nearly = dataclasses.replace(PLAN, peak_bytes=15 * GIB, change=REFUSED.change)
    assert "(94%, little is left)" in table(nearly) and "micro_batches=2" in table(nearly)


def test_plans_survive_json():
    for plan in (PLAN, SAMPLING, REFUSED):
        assert from_config_dict(Plan, json.loads(to_json(dataclasses.asdict(plan)))) == plan


def test_page_has_a_section_for_every_config_and_each_plan_in_full():
    text = page([PLAN, dataclasses.replace(PLAN, topology="v5e-256"), SAMPLING])
    assert text.count("\n## configs/x.py") == 2
    assert '??? note "v5e-256 in full"' in text and "        sampling of configs/x.py" in text
    row = "| 2xv5e-256 | 2x16x16 | 0.50 GiB | 8.00 of 16.00 GiB (50%) | 1.250 |"
    assert row in text and "| compute | 6.2; 10.9 to 12.0 |" in text
