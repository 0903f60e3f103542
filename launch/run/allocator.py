"""The C library's allocator, told to keep what is freed: on a CPU, arrays are its memory.

XLA asks for a program's temporaries at every run of it and frees them after. glibc gives blocks of that size back to
the system at once, and their pages have to be made and zeroed again: up to a quarter of the time of a small step.
"""

import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

KEEP_MEMORY = "DALLE_JAX_KEEP_MEMORY"
"""Environment variable: `0` leaves the allocator as it comes."""

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Lets this process keep its memory until it ends, where it computes on a CPU with glibc; returns whether it does.

    It must come before the first thread, NumPy's included: threads have arenas of their own, which cannot do it. Where
    NumPy is there already nothing is done, nor where the environment has `MALLOC_...`, `GLIBC_TUNABLES` or 0 for
    `KEEP_MEMORY`.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or os.environ.get(KEEP_MEMORY) == "0":
        return False
    if "numpy" in sys.modules or platform.libc_ver()[0] != "glibc" or not _computes_on_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])


def _computes_on_cpu() -> bool:
    """Without asking JAX for its devices, which would start them."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return set(platforms.split(",")) == {"cpu"}
    has_tpu = any(Path("/dev").glob("accel*")) or Path("/dev/vfio").exists()
    return not has_tpu and not importlib.metadata.entry_points(group="jax_plugins")
