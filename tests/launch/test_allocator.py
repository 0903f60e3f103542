"""Memory that a script frees stays with it on a CPU, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from launch.run import allocator

PROGRAM = """
import resource
from launch.run.allocator import keep_freed_memory
keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def array_of_64_megabytes(x):
    return x[:, None] * x

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array_of_64_megabytes(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = jnp.ones(4096)
print(min([faults() for _ in range(40)][-10:]))  # the first ones cut blocks for all that is held at a time
"""


def faults(**environment: str) -> int:
    """Pages that a process is given in a repeated run of a program."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    environment = clean | {"JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, stdout=subprocess.PIPE)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_are_made_once():
    assert faults() < 1_000
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not huge.exists() or "[always]" not in huge.read_text():  # where a page is 2 MiB, 64 MiB are few
        assert faults(DALLE_JAX_KEEP_MEMORY="0") > 10_000


def test_not_in_a_process_that_has_begun_otherwise():
    assert "numpy" in sys.modules and not allocator.keep_freed_memory()


@pytest.mark.parametrize("platforms, cpu", [("cpu", True), ("cpu,cpu", True), ("cuda", False), ("tpu,cpu", False)])
def test_only_where_a_cpu_computes(platforms, cpu, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert allocator._computes_on_cpu() == cpu
