"""One plan for people: lines of text."""

from dalle_jax.training.telemetry.chips import GIB
from launch.planning.record import Plan

GB = 1e9


def table(plan: Plan) -> str:
    """A plan as a table on the terminal."""
    rows = [
        ("parameters", f"{plan.parameters:,}"),
        ("memory a chip", _memory(plan)),
        *_listed("caches an image", _caches(plan)),
        *_flops(plan),
        *_listed("sent by a chip", _transfers(plan)),
        *_times(plan),
        *_change(plan),
        *(("note", note) for note in plan.notes),
        ("compiled in", f"{plan.compile_seconds:.0f} s"),
    ]
    return "\n".join([_head(plan), *(f"  {name:17} {value}" for name, value in rows)])


def bounds(plan: Plan) -> str:
    """Seconds by what limits a step; the network's where there are several slices."""
    if plan.seconds is None:
        return "not known"
    parts = {"compute": plan.seconds.compute, "memory": plan.seconds.memory, "links": plan.seconds.links}
    if plan.seconds.network:
        parts["network"] = plan.seconds.network
    return ", ".join(f"{name} {_seconds(value)}" for name, value in parts.items())


def published_days(plan: Plan) -> str:
    """Days of the run at the utilisation of published ones."""
    if plan.days_published is None:
        return ""
    best, worst = (f"{days:.1f}" for days in plan.days_published)
    return best if best == worst else f"{best} to {worst}"


def gib(size: float) -> str:
    """A size in GiB."""
    return f"{size / GIB:.2f}"


def _head(plan: Plan) -> str:
    data, fsdp, tensor = plan.mesh
    what = f"{plan.batch_size:,} images of one caption" if plan.is_sampling else f"batch {plan.batch_size:,}"
    mesh = f"data {data} x fsdp {fsdp} x tensor {tensor}"
    return f"{plan.stage} of {plan.config} on {plan.topology}: {plan.chips} chips as {mesh}, {what}"


def _memory(plan: Plan) -> str:
    verdict = "" if plan.fits else (", little is left" if plan.accepted else ", does not fit")
    share = plan.peak_bytes / plan.memory_bytes
    return (
        f"{gib(plan.peak_bytes)} of {gib(plan.memory_bytes)} GiB ({share:.0%}{verdict}): "
        f"state {gib(plan.state_bytes)}, temporaries {gib(plan.temporary_bytes)}"
    )


def _listed(name: str, lines: list[str]) -> list[tuple[str, str]]:
    return [(name if i == 0 else "", line) for i, line in enumerate(lines)]


def _caches(plan: Plan) -> list[str]:
    return [
        f"{row.pattern}: {row.layers} layers x {row.positions} positions, {row.kept / 1e6:.1f} MB kept, "
        f"{row.read / 1e6:.1f} MB read a token"
        for row in plan.caches
    ]


def _flops(plan: Plan) -> list[tuple[str, str]]:
    ratio = plan.executed_over_useful
    if ratio is None:
        return [("FLOPs a token", f"{plan.executed_flops:.4g} executed")]
    return [
        ("FLOPs a step", f"{plan.useful_flops:.4g} useful, {plan.executed_flops:.4g} executed: {ratio:.3f} times"),
        ("  useful", plan.formula),
    ]


def _transfers(plan: Plan) -> list[str]:
    if not plan.accepted:
        return ["not known"]
    lines = [
        f"{row.kind} over {' x '.join(row.axes)}, {row.count} a step: {_size(row.within)} within a slice"
        + (f", {_size(row.between)} between slices" if row.between else "")
        for row in plan.transfers
    ]
    return lines or ["nothing"]


def _times(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    if plan.seconds is not None:
        rows.append((f"a {'token' if plan.is_sampling else 'step'} takes", f"at least: {bounds(plan)}"))
        rows.append(("bound by", plan.seconds.bound))
    if plan.drawing_seconds is not None:
        rows.append(("all images", f"{plan.drawing_seconds:.1f} s at the bound, {plan.num_steps:,} tokens each"))
    if plan.steps_a_day is not None:
        rows.append(("steps a day", f"{plan.steps_a_day:,.0f} at the bound"))
    if plan.days_published is not None:
        bound = "" if plan.days_at_bound is None else f"{plan.days_at_bound:.1f} days at the bound, "
        days = f"{bound}{published_days(plan)} at the utilisation of published runs"
        rows.append((f"{plan.num_steps:,} updates", days))
    return rows


def _change(plan: Plan) -> list[tuple[str, str]]:
    if plan.fits:
        return []
    if plan.change is None:
        nothing = "no finer mesh, micro-batches or recomputation found"
        if plan.is_sampling:
            nothing = "neither fewer images at once nor a finer mesh suffices"
        return [("would fit", f"{nothing}: take more or larger chips")]
    flags, estimated = " ".join(plan.change.flags), gib(plan.change.estimated_bytes)
    measured = f"{gib(plan.change.measured_bytes)} GiB" if plan.change.measured_bytes else "refused"
    lines = [f"{flags}: estimated {estimated} GiB, compiled {measured}"]
    if "--num_samples" in flags:
        lines.append("this many at a time; launch.generate samples the rest after them (--max_sequences)")
    return _listed("would fit", lines)


def _size(size: float) -> str:
    for unit, name in ((GB, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
