"""Many plans for people: the page of the documentation."""

from collections.abc import Sequence

from launch.planning.families import FAMILIES
from launch.planning.record import Plan
from launch.planning.report import GB, bounds, gib, published_days, table

HEAD = """# Plans

What the published configs need, before anything is rented. `python -m launch.plan --all --out=docs/plans.md` made this
page: each program is compiled whole by the TPU compiler, on a machine without a TPU, from abstract arrays. The same for
any config and topology:

    python -m pip install -c constraints.txt -e ".[tpu]"
    python -m launch.plan --config=configs/decoder_12b.py --topology=v5e-256                    # --json for programs
    python -m launch.plan --config=configs/decoder_12b.py --topology=v5p-128 --mode=generate --num_samples=512

Nothing here was run on a TPU.

- **memory**: the compiler's peak of one chip, arguments and program included, of the chip's memory. The state is what
  stays from step to step: parameters, optimizer, average.
- **executed / useful**: FLOPs of matrix products and convolutions in the traced program, recomputation and loops
  included, over the useful ones by the formula under the table.
- **at least**: seconds of a step at the chip's peak (six times as many for products of float32), at its memory's
  bandwidth, at its links' and, between slices, at its share of the host's network. The largest is the bound: a step
  that hides the others behind it takes that long. Bytes are those that the compiled program reads, writes and sends.
- **compiled in**: wall time; more where other programs ran beside it.
- **days**: of all updates, at the bound, and at the utilisation that published runs on these chips reach. Where the
  second is below the first, this step cannot reach that utilisation: the first counts.
"""


def page(plans: Sequence[Plan]) -> str:
    """A section for every config, with each plan in full, and the figures of the chips."""
    parts = [HEAD]
    for config in dict.fromkeys((plan.config, plan.stage) for plan in plans):
        parts.append(_section([plan for plan in plans if (plan.config, plan.stage) == config]))
    return "\n".join([*parts, _chips()])


def _section(plans: Sequence[Plan]) -> str:
    first = plans[0]
    if first.is_sampling:
        title = f"## {first.config}: {first.batch_size} images of a caption"
        columns = ["chips", "mesh", "weights", "memory", "a token takes at least", "bound by", "all images"]
        cells = _sampling_cells
    else:
        title = f"## {first.config}: {first.stage}, batch {first.batch_size:,}, {first.num_steps:,} updates"
        columns = ["chips", "mesh", "state", "memory", "executed / useful", "a step takes at least", "bound by", "days"]
        cells = _training_cells
    lines = [title, "", _row(columns), _row(["---"] * len(columns)), *(_row(cells(plan)) for plan in plans), ""]
    lines += [f"{first.parameters:,} parameters. {first.formula}".rstrip(), ""]
    for plan in plans:
        text = "\n".join(f"        {line}" for line in table(plan).splitlines())
        lines += [f'??? note "{plan.topology} in full"', "", text, ""]
    return "\n".join(lines)


def _common_cells(plan: Plan) -> list[str]:
    memory = f"{gib(plan.peak_bytes)} of {gib(plan.memory_bytes)} GiB ({plan.peak_bytes / plan.memory_bytes:.0%})"
    return [plan.topology, "x".join(map(str, plan.mesh)), f"{gib(plan.state_bytes)} GiB", memory]


def _training_cells(plan: Plan) -> list[str]:
    at_bound = "" if plan.days_at_bound is None else f"{plan.days_at_bound:.1f}; "
    return [
        *_common_cells(plan),
        f"{plan.executed_over_useful:.3f}",
        bounds(plan),
        plan.bound or "does not fit",
        at_bound + published_days(plan),
    ]


def _sampling_cells(plan: Plan) -> list[str]:
    whole = "" if plan.drawing_seconds is None else f"{plan.drawing_seconds:.1f} s"
    return [*_common_cells(plan), bounds(plan), plan.bound or "does not fit", whole]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _chips() -> str:
    columns = ["chip", "peak, bf16", "memory", "its bandwidth", "a link, one way", "network a chip", "published MFU"]
    lines = ["## The chips", "", _row([*columns, "source"]), _row(["---"] * (len(columns) + 1))]
    for name, family in FAMILIES.items():
        chip, (low, high) = family.chip, family.published_mfu
        cells = [
            name,
            f"{chip.flops / 1e12:.0f} TFLOP/s",
            f"{gib(chip.memory_bytes)} GiB",
            f"{chip.memory_bandwidth / GB:.0f} GB/s",
            f"{family.link_bandwidth / GB:.0f} GB/s",
            f"{family.network_bandwidth / GB:.3g} GB/s",
            f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}",
            family.source,
        ]
        lines.append(_row(cells))
    lines += ["", "Peak, memory and links are the makers': see `dalle_jax/training/telemetry/chips.py`."]
    return "\n".join(lines) + "\n"
