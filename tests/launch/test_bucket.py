"""The whole road with every path in a bucket (an emulator on loopback): train, resume, draw, encode, train on it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from dalle_jax import storage
from dalle_jax.training.checkpoints.workdir import saved_steps
from tests.launch.conftest import ROOT, environment

pytestmark = [pytest.mark.entry, pytest.mark.slow, pytest.mark.timeout(3600)]

TINY = "--config=configs/quickstart.py:tiny"


@pytest.fixture(scope="module")
def launch(emulator, tmp_path_factory):
    """Runs a script in a process of its own, which finds the bucket by its environment."""
    data = f"--config.data.shapes.data_dir={tmp_path_factory.mktemp('data')}"

    def run(script, *arguments):
        config = [TINY, data] if script in ("train", "encode") else []
        command = [sys.executable, "-m", f"launch.{script}", *config, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def run(launch) -> str:
    launch("train", "--workdir=gs://bucket/run")
    return "gs://bucket/run"


def losses(folder: str) -> list[float]:
    rows = [json.loads(line) for line in storage.read(f"{folder}/metrics.jsonl").decode().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_training(run, tiny_run):
    for stage in ("codec", "decoder", "clip"):
        assert saved_steps(f"{run}/{stage}") == [2]
        assert losses(f"{run}/{stage}") == losses(str(tiny_run / stage)), "the place changes no number"
        assert storage.files_in(f"{run}/{stage}/tensorboard") and storage.files_in(f"{run}/{stage}/previews")


def test_going_on(launch, run):
    # Not the codec, which would be another one than the decoder has learned from.
    launch("train", f"--workdir={run}", "--stages=decoder", "--config.decoder.train.num_steps=4")
    assert max(saved_steps(f"{run}/decoder")) == 4 and len(losses(f"{run}/decoder")) == 4


def test_an_unfinished_checkpoint_is_none(run):
    unfinished = epath.Path(run) / "clip" / "checkpoints" / "7" / "params"
    unfinished.mkdir(parents=True)
    (unfinished / "d").write_text("half")
    assert saved_steps(f"{run}/clip") == [2]


def test_profile(launch):
    train = [f"--config.codec.train.{name}" for name in ("num_steps=3", "eval_every=0", "preview_every=0")]
    launch("train", "--workdir=gs://bucket/profiled", "--stages=codec", "--profile_steps=2,2", *train)
    assert any(name.endswith(".xplane.pb") for name in storage.walk("gs://bucket/profiled/codec/profile"))


def test_drawing(launch, run):
    out = "gs://bucket/drawn"
    options = ("--prompt=a red circle", "--num_samples=3", "--keep=2")
    said = launch("generate", f"--workdir={run}", *options, f"--out={out}")
    assert "2 of 3 kept" in said
    assert {"grid.png", "manifest.json", "0000_000.png", "0000_001.png"} <= set(storage.files_in(out))


def test_encoding_and_training_on_it(launch, run):
    out = "gs://bucket/encoded"
    launch("encode", f"--workdir={run}", f"--out={out}", "--shard_size=100")
    assert "shards are what the manifest says" in launch("encode", f"--out={out}", "--verify")
    where = ["--config.data.source=encoded", f"--config.data.path={out}", f"--config.decoder.codec_from={run}"]
    launch("train", "--workdir=gs://bucket/on_tokens", "--stages=decoder", *where)
    assert np.all(np.isfinite(losses("gs://bucket/on_tokens/decoder")))


def test_evaluating(launch, run):
    launch("evaluate", f"--model={run}", "--suite=retrieval", "--data=run", "--out=gs://bucket/report")
    assert "retrieval.json" in storage.files_in("gs://bucket/report")


def test_watching(launch, run):
    assert launch("status", run).startswith("finished: ")
    assert "starting.json" not in storage.files_in(run), "a run that has begun keeps records of its own"
    launch("plot", run, "--out=gs://bucket/curves/loss.png")
    assert storage.read("gs://bucket/curves/loss.png").startswith(b"\x89PNG")


def test_nothing_was_written_beside_the_bucket(run):
    assert not [name for name in os.listdir(ROOT) if name.startswith("gs:")]
