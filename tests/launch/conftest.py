"""A tiny run of every stage, trained once as a person would, and a quick way to start scripts."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clip_jax.evaluation.prompts import published_prompts
from configs.clip_cifar10 import TEMPLATES
from dalle_jax.data.readers.webdataset_writer import write_shard
from tests.data.conftest import encoded_image

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    out: str
    err: str


class Scripts:
    """Starts scripts of launch/ in forks of one process; see `forked_scripts.py`."""

    def __init__(self, process: subprocess.Popen, data: Path):
        self._process = process
        self.data = f"--config.data.shapes.data_dir={data}"

    def __call__(self, script: str, *arguments: str, cwd: Path = ROOT, devices: int = 1) -> Ended:
        request = {"script": script, "arguments": list(map(str, arguments)), "cwd": str(cwd), "devices": devices}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def train(self, config: str, workdir: Path, *arguments: str, **where) -> Ended:
        """`launch.train` with a config file of `configs/` or elsewhere."""
        return self(
            "train", f"--config={ROOT / 'configs' / config}", self.data, f"--workdir={workdir}", *arguments, **where
        )


def environment() -> dict[str, str]:
    """Of a script in a process of its own."""
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}


@pytest.fixture(scope="session")
def scripts(tmp_path_factory) -> Iterator[Scripts]:
    """Runs `scripts(name, *arguments)`; `scripts.train(config, workdir, *arguments)` for short."""
    program = Path(__file__).with_name("forked_scripts.py")
    with subprocess.Popen(
        [sys.executable, program], cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Scripts(process, tmp_path_factory.mktemp("data"))
        process.stdin.close()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> str:
    """Tars as those of CIFAR-10 are, for `configs/clip_cifar10.py`: noise in a colour for each class."""
    rng, classes = np.random.default_rng(0), [name for (name,) in published_prompts("CIFAR10").classes]
    colours = rng.integers(40, 215, (len(classes), 3))
    shard = [
        {
            "key": b"%010d" % i,
            "png": encoded_image(np.uint8(colours[i % 10] + rng.integers(-40, 40, (32, 32, 3)))),
            "txt": TEMPLATES[i % len(TEMPLATES)].replace("{}", classes[i % 10]).encode(),
            "cls": b"%d" % (i % 10),
        }
        for i in range(400)
    ]
    folder = tmp_path_factory.mktemp("photographs") / "cifar10"  # by which its prompts are found
    folder.mkdir()
    write_shard(folder / "train-00000.tar", shard)
    return str(folder / "train-*.tar")


@pytest.fixture(scope="session")
def tiny_run(scripts: Scripts, tmp_path_factory) -> Path:
    """Work directory of `quickstart.py:tiny`, trained in a process of its own. Tests leave it as it is."""
    workdir = tmp_path_factory.mktemp("run") / "tiny"
    command = ["-m", "launch.train", "--config=configs/quickstart.py:tiny", scripts.data, f"--workdir={workdir}"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workdir
