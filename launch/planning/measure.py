"""Compiles a target and reads from the result what it needs: memory, transfers, memory traffic."""

import dataclasses
import re
import time
from typing import Any

from launch.planning.collectives import Collective, collectives
from launch.planning.hlo import parse
from launch.planning.programs import Target
from launch.planning.traffic import memory_traffic

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_EXHAUSTED = re.compile(r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT])")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one run of a compiled program takes of one device.

    Attributes:
      accepted: whether the compiler found room for it; if not, transfers and traffic are unknown.
      peak_bytes: memory at the fullest moment, arguments and program code included.
      transfers: see `collectives`.
      traffic_bytes: see `memory_traffic`.
      unknown_loops: loops of which the compiler does not say how often they run; they are counted once.
      compile_seconds: wall time.
    """

    accepted: bool
    peak_bytes: int
    compile_seconds: float
    transfers: tuple[Collective, ...] = ()
    traffic_bytes: float = 0.0
    unknown_loops: int = 0


def measure(target: Target, traced: Any) -> tuple[Measurement, Any]:
    """Compiles a traced target; returns what was read, and the compiled program (None where it does not fit)."""
    start = time.perf_counter()
    try:
        compiled = target.compile(traced)
    except Exception as error:
        needed = _EXHAUSTED.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or needed is None:
            raise
        peak = int(float(needed[1]) * UNITS[needed[2]])
        return Measurement(False, peak, time.perf_counter() - start), None
    seconds = time.perf_counter() - start
    memory, program = compiled.memory_analysis(), parse(compiled.as_text())
    return Measurement(
        True,
        # Not the sum of arguments and temporaries: these are counted without the room that they take from each other.
        memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes,
        seconds,
        tuple(collectives(program, target.mesh)),
        memory_traffic(program),
        program.unknown_loops,
    ), compiled
