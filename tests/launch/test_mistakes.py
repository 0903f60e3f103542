"""What a person may get wrong: one line that says what and what to do, exit code 2, and nothing saved is lost."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.training.checkpoints.workdir import saved_steps

pytestmark = pytest.mark.entry

ROOT = Path(__file__).parents[2]
TINY = "quickstart.py:tiny"
WEBDATASET = "--config.data.source=webdataset"


def assert_refused(ended, *parts: str) -> None:
    """Exactly one line on stderr."""
    assert ended.code == 2, ended
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ") and len(line) < 600
    for part in parts:
        assert part in line, line


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def kept(tiny_run):
    """The trained run, which must be what it was afterwards."""
    before = contents(tiny_run)
    yield tiny_run
    assert contents(tiny_run) == before


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of images without captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.decoder.train.num_step=3"], ["'config.decoder.train.num_step'", "did you mean 'num_steps'"]),
        (["--config.decodr.train.num_steps=3"], ["'config.decodr.train.num_steps'", "did you mean 'decoder'"]),
        (["--config.decoder.train.num_steps=many"], ["config.decoder.train.num_steps=many", "int"]),
        (["--config.seed=4294967296"], ["config: seed must be from 0 to 2**32 - 1, not 4294967296"]),
        (["--config.decoder.train.optimizer.b2=nan"], ["config.decoder.train.optimizer.b2 must be a finite number"]),
        (["--config.codec.model.body=path"], ["config.codec.model.body", "did you mean 'patch'"]),
        (["--config.tokenizer.vocab_size=300"], ["decoder.model.text_vocab_size is 200", "set them alike"]),
        (["--stages=codec,decodr"], ["--stages", "'decodr'", "codec, decoder, clip"]),
        (["--profile_steps=5"], ["--profile_steps=5", "FIRST,LAST"]),
        (["--dryrun"], ["dryrun", "dry_run"]),
        (["more"], ["what is 'more'?", "--help"]),
    ],
)
def test_command_line(scripts, tmp_path, arguments, parts):
    assert_refused(scripts.train(TINY, tmp_path / "run", *arguments), *parts)
    assert not (tmp_path / "run").exists()


def test_missing_config_preset_or_workdir(scripts, tmp_path):
    assert_refused(scripts("train", f"--workdir={tmp_path}"), "no config given", "--config=configs/X.py")
    wrong = scripts("train", "--config=configs/quickstrt.py:tiny", f"--workdir={tmp_path}")
    assert_refused(wrong, "there is no file configs/quickstrt.py", "did you mean 'configs/quickstart.py'")
    assert_refused(scripts.train("quickstart.py:tyni", tmp_path / "run"), "no preset 'tyni'", "did you mean 'tiny'")
    assert_refused(scripts("train", "--config=configs/quickstart.py:tiny"), "--workdir=FOLDER")
    for script in ("generate", "evaluate"):
        assert_refused(scripts(script, "--prompt=a dog" if script == "generate" else "--suite=shapes"), "flag" if
                       script == "evaluate" else "--workdir")  # fmt: skip


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("TrainConfig(batch_size=8, num_step=2)", [", line 4: ", "num_step"]),
        ("TokenizerConfig(text_length=1)", [", line 4: ", "text_length must be at least 2"]),
        ("config.codec.train.ema_every = 0", ["config.codec.train: ema_every must be at least 1, not 0"]),
        ("config.data.eval_fraction = float('inf')", ["'config.data.eval_fraction' must be a finite number, not inf"]),
        ("config.decoder.model.num_layers = 0", ["config.decoder.model: num_layers must be at least 1, not 0"]),
        ("config.clip.model.vision.patch_size = 0", ["config.clip.model.vision: patch_size must be at least 1, not 0"]),
        ("config.unlock(); config.codec.train.num_step = 2", ["'config.codec.train.num_step'", "'num_steps'"]),
        ("config.unlock(); config.codc = config.codec", ["'config.codc'", "'codec'"]),
        ("config.unlock(); config.codec.train = {'num_steps': 2}", ["missing", "config.codec.train.batch_size"]),
        ("config.unlock(); config.seed = '0'", [", line 4: ", "'seed'", "<class 'int'>"]),
        ("config.unlock(); del config.seed; config.seed = '0'", ["'config.seed' must be int"]),
        ("config.unlock(); del config.codec; config.codec = 5", ["'config.codec' must hold a section"]),
        ("config = 5", ["get_config must return a ConfigDict, not int"]),
    ],
)
def test_config_file(scripts, tmp_path, line, parts):
    file = config_file(tmp_path, line)
    assert_refused(scripts.train(file, tmp_path / "run"), *parts)
    assert not (tmp_path / "run").exists()


def config_file(folder: Path, line: str) -> Path:
    path = folder / "mine.py"
    imports = "from configs import quickstart; from configs.quickstart import *"
    path.write_text(
        f"{imports}\ndef get_config():\n    config = quickstart.get_config('tiny')\n    {line}\n    return config\n"
    )
    return path


def test_folder_of_another_run(scripts, kept, tmp_path):
    ended = scripts.train(TINY, kept, "--config.codec.train.batch_size=16", "--config.seed=3")
    assert_refused(ended, "another config", "seed (0 there, 3 now)", "choose another --workdir")
    (tmp_path / "file").write_text("")
    assert_refused(scripts.train(TINY, tmp_path / "file"), "work directory", str(tmp_path / "file"))


def test_mesh_and_batch(scripts, kept, tmp_path):
    run = tmp_path / "run"
    assert_refused(scripts.train(TINY, run, "--config.mesh.data=3", devices=2), "mesh of 3x1x1", "2 devices")
    # Of the last stage: found before the first one trains.
    ended = scripts.train(TINY, run, "--config.clip.train.batch_size=7", devices=2)
    assert_refused(ended, "batch_size 7", "2 devices", "multiple of 2")
    ended = scripts.train(TINY, kept, "--config.mesh.data=4", devices=2)
    assert_refused(ended, "mesh of 4x1x1")
    assert not run.exists()


def test_data(scripts, tmp_path, pictures):
    run = tmp_path / "run"
    ended = scripts.train(TINY, run, WEBDATASET, f"--config.data.path={tmp_path}/none/*.tar")
    assert_refused(ended, f"{tmp_path}/none/*.tar")

    shard = tmp_path / "images.tar"
    with tarfile.open(shard, "w") as tar:
        for file in sorted(pictures.iterdir()):
            tar.add(file, file.name)
    # Of the corpora without captions, one is in a tar and one in a folder.
    for arguments in ([WEBDATASET, f"--config.data.path={shard}"],
                      ["--config.data.source=folder", f"--config.data.path={pictures}"]):  # fmt: skip
        assert_refused(scripts.train(TINY, run, *arguments), "caption")

    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    assert_refused(scripts.train(TINY, run, WEBDATASET, f"--config.data.path={cut}"), str(cut), "cut")

    for i in range(8):
        (pictures / f"{i}.txt").write_text("a dog")
    folder = ["--config.data.source=folder", f"--config.data.path={pictures}"]
    assert_refused(scripts.train(TINY, run, *folder), "vocabulary of 200", "vocab_size=")
    assert not run.exists()  # so that the corrected command finds no other run in its way


def test_missing_checkpoint(scripts, kept, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    assert_refused(scripts.train(TINY, run, "--stages=decoder"), f"{run} has no trained codec", "train it first")
    assert_refused(scripts.train(TINY, run, "--config.decoder.codec_from=nowhere"), "nowhere/config.json is missing")
    assert_refused(scripts.train(TINY, run, "--config.init_from=nowhere"), "no tokenizer at", "nowhere")
    assert not run.exists()

    shutil.copytree(kept, copy, ignore=lambda folder, names: ["2"] if folder.endswith("decoder/checkpoints") else [])
    assert_refused(generate(scripts, copy, tmp_path), "no checkpoint in", "decoder", "train that stage first")
    assert_refused(generate(scripts, kept, tmp_path, "--step=7"), "no checkpoint of step 7", "it has 2")
    assert_refused(generate(scripts, tmp_path / "nowhere", tmp_path), "nowhere/config.json is missing")


def test_another_tokenizer_for_fine_tuning(scripts, kept, tmp_path):
    train_tokenizer([f"a {word} of {word}s" for word in ("dog", "cat", "hill")], 30, tmp_path / "other.model")
    other = f"--config.tokenizer.path={tmp_path / 'other.model'}"
    ended = scripts.train(TINY, tmp_path / "run", f"--config.init_from={kept}", other)
    assert_refused(ended, "other.model is not the tokenizer", str(kept), "leave config.tokenizer.path out")
    assert_refused(scripts.train(TINY, tmp_path / "run", other), "30 pieces", "vocab_size is 200")


def generate(scripts, workdir, out, *arguments, prompt="--prompt=a small red circle"):
    return scripts("generate", f"--workdir={workdir}", f"--out={out / 'out'}", "--num_samples=2", prompt, *arguments)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--prompt="], ["prompt 2 of 2 is empty"]),
        (["--prompt=" + "a very long caption " * 20], ["is too long", "23 text tokens"]),
        (["--keep=3"], ["keep is 3, but num_samples is 2"]),
        (["--keep=1", "--clip=none"], ["nothing ranks the 2 samples"]),
        (["--num_samples=0"], ["num_samples must be 1 or more"]),
        (["--top_p=2"], ["top_p"]),
        (["--temperature=nan"], ["--temperature must be a finite number, not nan"]),
        (["--guidance_scale=-inf"], ["--guidance_scale must be a finite number, not -inf"]),
        (["--prompts=no/such/file"], ["--prompts=no/such/file"]),
        (["--prime=no/such.png", "--prime_rows=1"], ["--prime=no/such.png"]),
        (["--prime_rows=1"], ["prime and prime_rows go together"]),
        (["--clip=no/where"], ["no/where does not exist"]),
        (["--workdir=README.md"], ["README.md/config.json is missing"]),
        (["--out=README.md"], ["README.md", "a file stands where a folder should be"]),
    ],
)
def test_drawing(scripts, kept, tmp_path, arguments, parts):
    assert_refused(generate(scripts, kept, tmp_path, *arguments), *parts)


def test_no_prompt(scripts, kept, tmp_path):
    ended = scripts("generate", f"--workdir={kept}", f"--out={tmp_path}")
    assert_refused(ended, "no caption given", "--prompts=FILE")


def test_evaluating(scripts, kept, tmp_path):
    assert_refused(scripts("evaluate", f"--model={kept}", "--suite=shaps"), "'shaps', did you mean 'shapes'?")
    assert_refused(scripts("evaluate", f"--model={tmp_path / 'none'}"), "config.json is missing")


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds the tiny run's codec with its optimizer, and not its decoder."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = "28m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk(scripts, small_disk):
    run = small_disk / "run"
    ended = scripts.train(TINY, run)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.err and "Event loop" not in ended.err, ended.err
    *_, last = ended.err.splitlines()
    assert last.startswith("error: the disk is full while saving to")
    assert ended.err.count("error: ") == 1
    assert saved_steps(run / "codec") == [2]
    (small_disk / "room").mkdir()
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    again = scripts.train(TINY, run)
    assert again.code == 0, again
    assert [saved_steps(run / stage) for stage in ("codec", "decoder", "clip")] == [[2]] * 3


def test_full_disk_elsewhere(scripts, tmp_path):
    """Wherever the system says so, it is a mistake that a person can mend."""
    raising = "import errno; raise OSError(errno.ENOSPC, 'No space left on device', '/data/metrics.jsonl')"
    line = f"import launch.run.stages; launch.run.stages.load_codec = lambda path, **options: exec({raising!r})"
    ended = scripts.train(config_file(tmp_path, line), tmp_path / "run", "--config.decoder.codec_from=x")
    assert_refused(ended, "the disk is full while writing /data/metrics.jsonl", "saved before is intact")


@pytest.mark.parametrize("fault", ["{}['key']", "None.value", "1 / 0", "open('no such file')"])
def test_fault_keeps_its_traceback(scripts, tmp_path, fault):
    ended = scripts.train(config_file(tmp_path, fault), tmp_path / "run")
    assert ended.code == 1
    assert ended.err.startswith("Traceback") and "mine.py" in ended.err and "error:" not in ended.err


def test_fault_in_a_process_of_its_own(tmp_path):
    file = config_file(tmp_path, "raise RuntimeError('strange')")
    command = [sys.executable, "-m", "launch.train", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr and ended.stderr.endswith("RuntimeError: strange\n")
