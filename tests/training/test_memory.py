"""What is left of a host's memory, and of a container's."""

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax.training.telemetry.memory import free_bytes, host_free_bytes


def files(tmp_path, limit=None):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       4000 kB\nMemFree:         100 kB\nMemAvailable:   2000 kB\n")
    if limit is not None:
        cgroup.mkdir()
        (cgroup / "memory.max").write_text(f"{limit}\n")
        (cgroup / "memory.current").write_text("900000\n")
        (cgroup / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    return meminfo, cgroup


def test_cached_files_count_as_free(tmp_path):
    assert host_free_bytes(*files(tmp_path)) == 2000 * 1024


def test_a_container_has_less(tmp_path):
    assert host_free_bytes(*files(tmp_path, limit=1_000_000)) == 400_000


def test_a_container_without_a_limit_has_the_host(tmp_path):
    assert host_free_bytes(*files(tmp_path, limit="max")) == 2000 * 1024


def test_of_this_host():
    free = free_bytes(Mesh(np.asarray(jax.devices()), ("data",)))
    assert 0 < free < 2**50
