"""Times the workloads that matter, one row each.

    python -m launch.bench                            # all rows for this machine
    python -m launch.bench --rows=sampling,clip       # rows whose names contain any of these
    python -m launch.bench --peer                     # each peer in turn as well (needs the `parity` extra)
    python -m launch.bench --json > bench.jsonl

A row gives its shape, useful operations by formula (2 a multiply-add, recomputation not counted), the median time
of several runs after a warm-up, useful FLOP/s, and the shares of the machine's matrix-product rate and memory rate,
which are measured before and after every run in the same process; a peer runs in a process of its own. On CPU
products are in float32, on a GPU in bfloat16. MFU, useful FLOP/s over the peak that the chip's maker names, stands
where `dalle_jax.training.telemetry.chips` knows the chip.
"""

import json
from typing import Any

import jax
from absl import flags

from dalle_jax.errors import UserError, closest
from launch.benchmarks import ROWS
from launch.benchmarks.subprocess_workload import peer_of
from launch.benchmarks.timing import measure
from launch.benchmarks.workload import Row
from launch.cli import start

ROW_NAMES = flags.DEFINE_list("rows", [], "parts of names; default: all rows for this machine")
RUNS = flags.DEFINE_integer("runs", 5, "timed runs of each, of which the median counts", lower_bound=1)
WARMUP = flags.DEFINE_integer("warmup", 1, "runs before them, which compile", lower_bound=1)
JSON = flags.DEFINE_boolean("json", False, "a JSON object a line")
PEER = flags.DEFINE_boolean("peer", False, "time the peer in turn as well")


def chosen(names: list[str], gpu: bool) -> list[Row]:
    """The rows that are asked for, by default those sized for this machine.

    Raises:
      UserError: a name is part of none.
    """
    for name in names:
        if not any(name in row.name for row in ROWS):
            known = [row.name for row in ROWS]
            raise UserError(f"--rows: no row is called '{name}'{closest(name, known)} (rows: {', '.join(known)})")
    if names:
        named = [row for row in ROWS if any(name in row.name for name in names)]
        found = [row for row in named if row.gpu == gpu or row.name in names]
        if not found:
            rows = ", ".join(row.name for row in named)
            raise UserError(f"--rows: {rows} are sized for {'a CPU' if gpu else 'a GPU'}: a whole name runs here too")
        return found
    return [row for row in ROWS if row.gpu == gpu]


def line(result: dict[str, Any], row: Row) -> str:
    """A result for a person."""
    parts = [f"{result['row']:22} {result['shape']:58}", f"{result['seconds']:9.4f} s"]
    parts.append(f"{result['items_per_second']:10.1f} {row.unit}/s")
    if "flop" in result:
        parts.append(f"{result['flop'] / 1e9:9.1f} GFLOP {result['flop_per_second'] / 1e9:9.1f} GFLOP/s")
        parts.append(f"{result['share_of_matmul']:5.2f} of matmul")
    if "mfu" in result:
        parts.append(f"{result['mfu']:5.2f} MFU")
    if "share_of_memory" in result:
        parts.append(f"{result['share_of_memory']:5.2f} of memory")
    for name, value in result.get("facts", {}).items():
        words = name.removesuffix("_bytes").replace("_", " ")
        parts.append(f"{words} {value / 2**20:,.1f} MiB" if name.endswith("_bytes") else f"{words} {value:.4g}")
    if "ratio" in result:
        peer = result["peer"]
        parts.append(f"{result['ratio']:5.2f}x {peer['name']} ({peer['seconds']:.4f} s; to reach: {result['reach']}x)")
    return "  ".join(parts)


def main() -> None:
    """Runs the rows that are asked for, and prints each beside its peer."""
    for row in chosen(ROW_NAMES.value, gpu=jax.default_backend() != "cpu"):
        try:
            peer = peer_of(row) if PEER.value and row.make_peer is not None else None
        except ImportError as error:
            raise UserError(f"--peer needs {error.name}: run `bash launch/test.sh --parity` once") from error
        result = measure(row, runs=RUNS.value, warmup=WARMUP.value, peer=peer)
        print(json.dumps(result) if JSON.value else line(result, row), flush=True)


if __name__ == "__main__":
    start(main, alone=True)
