"""The columns of a row that the host adds: how fast, how well the devices are used, and where the time went."""

from collections.abc import Mapping

import jax

from dalle_jax.training.telemetry.attempts import Attempt
from dalle_jax.training.telemetry.chips import utilisation
from dalle_jax.training.telemetry.clock import Kind
from dalle_jax.training.telemetry.memory import resident_bytes


def speed_row(start: Attempt, steps: int, seconds: Mapping[str, float]) -> dict[str, float]:
    """Columns about the steps since the last row.

    Args:
      start: this start, for the sizes of a step.
      steps: updates since the last row.
      seconds: by kind since the last row.

    Returns:
      `steps_per_second`, `samples_per_second`, `time_in_data` (share of the time for steps spent waiting for batches),
      and, where a task counts its operations, `useful_flops_per_second` and `mfu` (see `utilisation`).
    """
    stepping = seconds[Kind.STEP] + seconds[Kind.INPUT] + seconds[Kind.OTHER]
    if not steps or stepping <= 0:
        return {}
    speed = steps / stepping
    row = {
        "steps_per_second": speed,
        "samples_per_second": speed * start.batch_size,
        "time_in_data": seconds[Kind.INPUT] / stepping,
    }
    if start.step_flops:
        row["useful_flops_per_second"] = start.step_flops * speed
    mfu = utilisation(start.step_flops, speed, start.peak_flops)
    return row if mfu is None else row | {"mfu": mfu}


def time_row(times: Mapping[str, float]) -> dict[str, float]:
    """Columns about the whole run: `wall_seconds`, `seconds/<kind>`, which sum to it, and `goodput`."""
    wall = sum(times.values())
    row = {f"seconds/{kind}": times[kind] for kind in Kind}
    return row | {"wall_seconds": wall, "goodput": times[Kind.STEP] / wall if wall else 0.0}


def memory_row() -> dict[str, float]:
    """`memory_in_use` and `memory_peak`, bytes of the fullest device of this process, and `host_memory_in_use`.

    A column is left out where the device, or the system, does not say.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    columns = {"memory_in_use": "bytes_in_use", "memory_peak": "peak_bytes_in_use"}
    found = {name: max((stat.get(key, 0) for stat in stats), default=0) for name, key in columns.items()}
    found["host_memory_in_use"] = resident_bytes() or 0
    return {name: float(value) for name, value in found.items() if value}
