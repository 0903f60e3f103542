"""Workloads in processes of their own, run again whenever they are asked to.

A process has one number of CPU devices; and torch's threads in it slow what XLA does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.benchmarks.workload import Row, Workload
from launch.run.allocator import KEEP_MEMORY


class Elsewhere(NamedTuple):
    """The other process, which ends with this one."""

    facts: dict[str, Any]
    """What it said first."""
    run: Callable[[], None]
    """Has it run once and waits for that."""


def start(name: str, statement: str, env: Mapping[str, str]) -> Elsewhere:
    """Starts a process.

    Args:
      name: of it, for messages.
      statement: Python that ends in a call of `serve`.
      env: added to this process's environment.

    Raises:
      RuntimeError: it has died; what it wrote to standard error says why.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", statement],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **env},
    )
    assert process.stdin is not None and process.stdout is not None
    ask, answers = process.stdin, process.stdout

    def answer() -> str:
        line = answers.readline()
        if not line:
            raise RuntimeError(f"the process of {name} has died")
        return line

    def run() -> None:
        print(file=ask, flush=True)
        answer()

    return Elsewhere(json.loads(answer()), run)


def serve(facts: Mapping[str, Any], run: Callable[[], Any]) -> None:
    """The other side of `start`: tells the facts, then runs for each line that it is sent, until there are no more."""
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        jax.block_until_ready(run())
        print("done", flush=True)


def peer_of(row: Row) -> Workload:
    """The peer of a row of `ROWS`, with the allocator that it comes with.

    Raises:
      ImportError: it is not installed here.
    """
    there = start(
        f"{row.name}'s peer", f"from {__name__} import serve_peer; serve_peer({row.name!r})", {KEEP_MEMORY: "0"}
    )
    if "missing" in there.facts:
        raise ImportError(f"no module {there.facts['missing']}", name=there.facts["missing"])
    return Workload(there.run, **there.facts)


def serve_peer(name: str) -> None:
    """The other side of `peer_of`."""
    from launch.benchmarks import ROWS

    make = next(row.make_peer for row in ROWS if row.name == name)
    assert make is not None
    try:
        workload = make()
    except ImportError as error:
        serve({"missing": error.name}, lambda: None)
    else:
        serve({"flops": workload.flops, "items": workload.items}, workload.run)
