"""Time and memory to load a checkpoint of ViT-L/14's size: each time in a process of its own, whose peak is told."""

import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import clip_jax
from clip_jax.preprocessing.hf import CLIP, preprocessor_to_hf
from clip_jax.weights.hf import config_to_hf, hf_names
from dalle_jax.config import write_json
from dalle_jax.weights import write_safetensors
from launch.benchmarks.clip import published
from launch.benchmarks.workload import Row, Workload

_PRESET = "vit_l14"
_SHARD = 40  # tensors in a file


def write_checkpoint(folder: str) -> dict[str, float]:
    """Random numbers in the layout and sizes of the published model; returns what there is to hold, in bytes."""
    config, rng = published(_PRESET).model, np.random.default_rng(0)
    shapes = {piece.name: piece.shape for piece in hf_names(config).pieces}
    names, files = list(shapes), {}
    for start in range(0, len(names), _SHARD):
        file = f"model-{start:05}.safetensors"
        part = {name: rng.standard_normal(shapes[name], np.float32) for name in names[start : start + _SHARD]}
        write_safetensors(os.path.join(folder, file), part)
        files |= dict.fromkeys(part, file)
    write_json(os.path.join(folder, "model.safetensors.index.json"), {"weight_map": files})
    write_json(os.path.join(folder, "config.json"), config_to_hf(config, "float32"))
    write_json(os.path.join(folder, "preprocessor_config.json"), preprocessor_to_hf(config.vision, CLIP))
    sizes = [4 * math.prod(shape) for shape in shapes.values()]
    return {"file_bytes": float(sum(sizes)), "largest_tensor_bytes": float(max(sizes))}


def load() -> Workload:
    """Loads published weights in a process of their own."""
    folder = tempfile.TemporaryDirectory()
    facts = write_checkpoint(folder.name)

    def run() -> None:
        command = [sys.executable, "-c", f"from {__name__} import main; main()", folder.name]
        alone = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # a GPU is shared with the benchmark
        facts.update(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=alone).stdout))

    return Workload(run, items=1.0, facts=facts)


def _peak_bytes() -> float:
    """The most memory of this process so far.

    The kernel's own count where there is one: `getrusage` goes on from what the process that started this one had used.
    """
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024.0 * int(peak[1])
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """What that process does: loads, and prints its time and peak memory."""
    jnp.zeros(8).block_until_ready()  # the device's start is no part of loading
    before, start = _peak_bytes(), time.perf_counter()
    clip = clip_jax.load(sys.argv[1])
    jax.block_until_ready(clip.variables)
    print(json.dumps({"load_seconds": time.perf_counter() - start, "load_peak_bytes": _peak_bytes() - before}))


ROWS = (Row("clip_load", "ViT-L/14, float32, in a process of its own", "models", load),)

if __name__ == "__main__":
    main()
