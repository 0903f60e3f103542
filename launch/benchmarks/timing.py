"""Timing in turn: the machine's own rates, our run, the peer's, again and again, so that a busy machine slows all."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.training.telemetry.chips import chip_of
from launch.benchmarks.workload import Row, Workload, product_dtype


@dataclasses.dataclass(frozen=True)
class Rates:
    """What this machine gives at this moment."""

    flops: float
    """Of a matrix product, operations a second."""
    bytes: float
    """Of a pass over 256 MiB in place, bytes read and written a second."""

    @classmethod
    def now(cls) -> "Rates":
        """Measures both, the best of three."""
        side = 1024 if jax.default_backend() == "cpu" else 8192
        square, line = jnp.ones((side, side), product_dtype()), jnp.ones(1 << 26, jnp.float32)
        product = min(_seconds(lambda: _product(square)) for _ in range(4))
        pass_ = math.inf
        for _ in range(4):
            start = time.perf_counter()
            line = jax.block_until_ready(_pass(line))
            pass_ = min(pass_, time.perf_counter() - start)
        return cls(2 * side**3 / product, 2 * line.nbytes / pass_)


@jax.jit
def _product(x: jax.Array) -> jax.Array:
    return x @ x


@functools.partial(jax.jit, donate_argnums=0)
def _pass(x: jax.Array) -> jax.Array:
    return x + 1  # in place: pages of a fresh result would have to be made first


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(row: Row, *, runs: int, warmup: int, peer: Workload | None = None) -> dict[str, Any]:
    """Times a row.

    Args:
      row: what is timed.
      runs: timed runs, of which the median counts.
      warmup: runs before them, which compile.
      peer: timed in turn with ours; None: not at all.

    Returns:
      Seconds, FLOP/s, shares of `Rates` around each run, items a second; with a peer its own, and `ratio` to it.
    """
    sides = {"ours": row.make()}
    if peer is not None:
        sides["peer"] = peer
    for workload in sides.values():
        for _ in range(warmup):
            jax.block_until_ready(workload.run())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    rates = [Rates.now()]
    for _ in range(runs):
        for name, workload in sides.items():
            seconds[name].append(_seconds(workload.run))
        rates.append(Rates.now())
    around = [
        Rates((before.flops + after.flops) / 2, (before.bytes + after.bytes) / 2)
        for before, after in zip(rates, rates[1:], strict=False)
    ]
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "row": row.name,
        "shape": row.shape,
        "device": device.device_kind,
        "dtype": product_dtype(),
        "runs": runs,
        "matmul_flop_per_second": statistics.median(rate.flops for rate in around),
        "memory_bytes_per_second": statistics.median(rate.bytes for rate in around),
        **_summary(sides["ours"], seconds["ours"], around),
    }
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        result["process_peak_bytes"] = peak
    chip = chip_of(device.device_kind)
    if chip is not None and "flop_per_second" in result:
        result["mfu"] = result["flop_per_second"] / chip.flops
    if "peer" in sides:
        result["peer"] = {"name": row.peer, **_summary(sides["peer"], seconds["peer"], around)}
        work, their_work = _work(sides["ours"], sides["peer"])
        result["ratio"] = statistics.median(
            (work / ours) / (their_work / theirs) for ours, theirs in zip(seconds["ours"], seconds["peer"], strict=True)
        )
        result["reach"] = row.reach
    return result


def _work(ours: Workload, theirs: Workload) -> tuple[float, float]:
    """What is compared: useful operations where both count them, else items."""
    if ours.flops and theirs.flops:
        return ours.flops, theirs.flops
    return ours.items, theirs.items


def _summary(workload: Workload, seconds: list[float], rates: list[Rates]) -> dict[str, Any]:
    median = statistics.median(seconds)
    result = {"seconds": median, "min": min(seconds), "max": max(seconds), "items_per_second": workload.items / median}
    if workload.flops:
        shares = [workload.flops / s / rate.flops for s, rate in zip(seconds, rates, strict=True)]
        result |= {
            "flop": workload.flops,
            "flop_per_second": workload.flops / median,
            "share_of_matmul": statistics.median(shares),
        }
    if workload.bytes:
        shares = [workload.bytes / s / rate.bytes for s, rate in zip(seconds, rates, strict=True)]
        result["share_of_memory"] = statistics.median(shares)
    return result | ({"facts": workload.facts} if workload.facts else {})
