"""How much memory is left, and how much is used."""

import os
from pathlib import Path

from jax.sharding import Mesh

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(mesh: Mesh) -> int:
    """Memory left on a device of this process, times the devices of the mesh; on a CPU, the host's."""
    stats = mesh.local_devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) * mesh.devices.size
    return host_free_bytes()


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    """What this process holds of the host's memory, its workers not counted; None where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def host_free_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int:
    """What programs of this host, or of this container, can still have without swapping."""
    if not meminfo.exists():  # not Linux: half of all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # Cached files count as used, and are given up when they are in the way.
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines()).get(
            "inactive_file", 0
        )
    except OSError:  # no container, or an older kind
        return free
    return free if limit == "max" else max(min(free, int(limit) - int(used) + int(cached)), 0)
