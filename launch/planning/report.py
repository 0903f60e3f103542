"""Plans for people: a table on the terminal, and the page of the published configs."""

from collections.abc import Sequence

from launch.planning.chips import CHIPS, GB, GiB
from launch.planning.plans import Plan

PAGE_HEAD = """# Plans

What the published configs need, before anything is rented. `python -m launch.plan --all --out=docs/plans.md` made this
page: each training step is compiled whole by the TPU compiler on a machine without a TPU, from abstract arrays
(`launch.plan --config=configs/X.py --topology=v5e-256` does the same for any config). Nothing here was run on a TPU.

- **memory**: the compiler's peak of one chip, arguments and program included, of the chip's memory. The state is what
  stays from step to step: parameters, optimizer, average.
- **executed / useful**: FLOPs of matrix products and convolutions in the traced program, recomputation and loops
  included, over the useful ones by the formula under the table.
- **bounds**: seconds of a step at the chip's peak, at its memory's bandwidth, at its links', at its host's network
  between slices. The largest is the bound; a step that hides the others behind it takes that long. Memory traffic is
  read from the compiled program and is what its fusions read and write.
- **days**: of all updates, at the bound, and at the utilisation (useful FLOPs over peak) that published runs on these
  chips reach.
"""


def table(plan: Plan) -> str:
    """One plan as lines of text."""
    sampling = plan.stage == "sampling"
    data, fsdp, tensor = plan.mesh
    batch = f"{plan.batch_size:,} pictures of one caption" if sampling else f"batch {plan.batch_size:,}"
    chips = f"{plan.chips} chips as data {data} x fsdp {fsdp} x tensor {tensor}"
    head = f"{plan.stage} of {plan.config} on {plan.topology}: {chips}, {batch}"
    temporaries = plan.peak_bytes - plan.state_bytes
    share = plan.peak_bytes / plan.memory_bytes
    verdict = "" if plan.fits else (": little is left" if plan.accepted else ": does not fit")
    rows = [
        ("parameters", f"{plan.parameters:,}"),
        (
            "memory a chip",
            f"{_gib(plan.peak_bytes)} of {_gib(plan.memory_bytes)} GiB ({share:.0%}){verdict}; "
            f"state {_gib(plan.state_bytes)}, temporaries {_gib(temporaries)}",
        ),
    ]
    rows += [("caches a picture" if i == 0 else "", line) for i, line in enumerate(_caches(plan))]
    if plan.useful_flops:
        ratio = plan.executed_flops / plan.useful_flops
        rows += [
            ("FLOPs a step", f"{plan.useful_flops:.4g} useful, {plan.executed_flops:.4g} executed ({ratio:.3f} times)"),
            ("  useful", plan.formula),
        ]
    else:
        rows.append(("FLOPs a token", f"{plan.executed_flops:.4g} executed"))
    rows += [("sent a step" if i == 0 else "", line) for i, line in enumerate(_transfers(plan))]
    rows += _times(plan, sampling)
    if plan.change is not None:
        measured = plan.change.measured_bytes
        said = f"{_gib(measured)} GiB compiled" if measured else "but the compiler found no room"
        flags, estimated = " ".join(plan.change.flags), _gib(plan.change.estimated_bytes)
        rows.append(("would fit" if measured else "nearest", f"{flags}: {estimated} GiB estimated, {said}"))
    elif not plan.fits:
        rows.append(("would fit", "no mesh, micro-batches or recomputation found: take more or larger chips"))
    rows += [("note", note) for note in plan.notes]
    rows.append(("compiled in", f"{plan.compile_seconds:.0f} s"))
    return "\n".join([head, *(f"  {name:18}{value}" for name, value in rows)])


def _caches(plan: Plan) -> list[str]:
    return [
        f"{row.pattern}: {row.layers} layers x {row.positions} positions, {row.kept / 1e6:.1f} MB kept, "
        f"{row.read / 1e6:.1f} MB read a token"
        for row in plan.caches
    ]


def _transfers(plan: Plan) -> list[str]:
    lines = [
        f"{row.kind} over {' x '.join(row.axes)}: {row.count} times, {row.within / GB:.3g} GB within a slice"
        + (f", {row.between / GB:.3g} GB between slices" if row.between else "")
        for row in plan.transfers
    ]
    return lines or (["nothing"] if plan.accepted else ["not known"])


def _times(plan: Plan, sampling: bool) -> list[tuple[str, str]]:
    rows = []
    unit = "a token" if sampling else "a step"
    if plan.seconds is not None:
        parts = _bounds(plan)
        rows.append(
            (f"bounds {unit}", f"{', '.join(f'{name} {_seconds(s)}' for name, s in parts)}: {plan.seconds.bound}")
        )
        if sampling:
            whole = plan.seconds.seconds * plan.num_steps
            rows.append(("at the bound", f"{whole:.1f} s for {plan.batch_size:,} pictures of {plan.num_steps} tokens"))
        else:
            rows.append(("steps a day", f"{plan.seconds.steps_a_day:,.0f} at the bound"))
    if plan.days_published is not None:
        bound = f"{plan.days_at_bound:.1f} days at the bound, " if plan.days_at_bound is not None else ""
        rows.append((f"{plan.num_steps:,} updates", f"{bound}{_published(plan)} days at published utilisation"))
    return rows


def _bounds(plan: Plan) -> list[tuple[str, float]]:
    assert plan.seconds is not None
    parts = [("compute", plan.seconds.compute), ("memory", plan.seconds.memory), ("links", plan.seconds.links)]
    return [*parts, ("network", plan.seconds.network)] if plan.seconds.network else parts


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _published(plan: Plan) -> str:
    assert plan.days_published is not None
    best, worst = (f"{days:.1f}" for days in plan.days_published)
    return best if best == worst else f"{best} to {worst}"


def _gib(size: float) -> str:
    return f"{size / GiB:.2f}"


def page(plans: Sequence[Plan]) -> str:
    """The page of the documentation: a table for every config, each plan in full, and the figures of the chips."""
    parts = [PAGE_HEAD]
    for config in dict.fromkeys((plan.config, plan.stage) for plan in plans):
        chosen = [plan for plan in plans if (plan.config, plan.stage) == config]
        parts.append(_section(*config, chosen))
    parts.append(_chip_table())
    return "\n".join(parts)


def _section(config: str, stage: str, plans: Sequence[Plan]) -> str:
    first = plans[0]
    if stage == "sampling":
        title = f"## {config}: drawing {first.batch_size} pictures of a caption"
        columns = ["chips", "mesh", "state", "memory", "bounds a token", "bound", "all pictures, at the bound"]
    else:
        title = f"## {config}: {stage}, batch {first.batch_size:,}, {first.num_steps:,} updates"
        columns = ["chips", "mesh", "state", "memory", "executed / useful", "bounds a step", "bound", "days"]
    lines = [title, "", _row(columns), _row(["---"] * len(columns))]
    for plan in plans:
        lines.append(_row(_cells(plan, stage)))
    if first.formula:
        lines += ["", f"{first.parameters:,} parameters. {first.formula}"]
    lines.append("")
    for plan in plans:
        lines += [
            f'??? note "{plan.topology} in full"',
            "",
            *(f"        {line}" for line in table(plan).splitlines()),
            "",
        ]
    return "\n".join(lines)


def _cells(plan: Plan, stage: str) -> list[str]:
    memory = f"{_gib(plan.peak_bytes)} of {_gib(plan.memory_bytes)} GiB ({plan.peak_bytes / plan.memory_bytes:.0%})"
    cells = [plan.topology, "x".join(map(str, plan.mesh)), f"{_gib(plan.state_bytes)} GiB", memory]
    if stage != "sampling":
        cells.append(f"{plan.executed_flops / plan.useful_flops:.3f}")
    if plan.seconds is None:
        cells += ["", "does not fit"]
    else:
        cells += [", ".join(f"{name} {_seconds(value)}" for name, value in _bounds(plan)), plan.seconds.bound]
    if stage == "sampling":
        cells.append("" if plan.seconds is None else f"{plan.seconds.seconds * plan.num_steps:.1f} s")
    else:
        bound = "" if plan.days_at_bound is None else f"{plan.days_at_bound:.1f}; "
        cells.append(f"{bound}{_published(plan)}")
    return cells


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _chip_table() -> str:
    columns = ["chip", "peak, bf16", "memory", "its bandwidth", "a link, one way", "network a chip", "published MFU"]
    lines = ["## The chips", "", _row([*columns, "source"]), _row(["---"] * (len(columns) + 1))]
    for chip in CHIPS.values():
        low, high = chip.published_mfu
        cells = [
            chip.name,
            f"{chip.peak_flops / 1e12:.0f} TFLOP/s",
            f"{chip.memory / GiB:.0f} GiB",
            f"{chip.memory_bandwidth / GB:.0f} GB/s",
            f"{chip.link_bandwidth / GB:.0f} GB/s",
            f"{chip.dcn_bandwidth / GB:.3g} GB/s",
            f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}",
            chip.source,
        ]
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"
