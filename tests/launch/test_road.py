"""Training as a person starts it: every tiny preset that `launch.train` takes, a run gone on with, a run fine-tuned."""

import json
import re
import shlex
import shutil
import unicodedata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

import clip_jax
import dalle_jax
from dalle_jax.codec import CodecConfig, ConvConfig, FrozenCodec, VqganConfig, save_codec, vqgan
from dalle_jax.codec.weights.dvae import dvae_shapes
from dalle_jax.config import from_config_dict, write_json
from dalle_jax.data.readers.webdataset_writer import write_shard
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.run_record import read_run
from dalle_jax.training.checkpoints.reader import load_params
from dalle_jax.training.checkpoints.workdir import read_workdir, saved_steps
from dalle_jax.training.trees import unbox
from launch.run.config import RunConfig
from launch.run.stages import make_batches, plan_decoder
from tests.data.conftest import encoded_image
from tests.launch.conftest import ROOT

pytestmark = pytest.mark.entry

TINY = "quickstart.py:tiny"
STAGES = ("codec", "decoder", "clip")


def rows(workdir: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def assert_trained(workdir: Path, stage: str) -> None:
    """Two steps, a checkpoint, finite metrics, held-out ones, and an image."""
    assert saved_steps(workdir / stage) == [2]
    written = rows(workdir, stage)
    assert {1, 2} <= {row["step"] for row in written if "loss" in row}
    assert any("eval/loss" in row for row in written)
    assert all(np.isfinite(value) for row in written for value in row.values())
    assert np.asarray(Image.open(workdir / stage / "previews" / "step_0000002.png")).std() > 0
    assert list((workdir / stage / "tensorboard").iterdir())


# Training


@pytest.mark.parametrize("stage", STAGES)
def test_tiny_run_trains_every_stage(tiny_run, stage):
    assert_trained(tiny_run, stage)
    record = json.loads((tiny_run / "config.json").read_text())
    assert record["format_version"] == 1 and record["commit"] and record["config"][stage]["train"]["num_steps"] == 2


def test_finished_run_does_nothing(scripts, tiny_run):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.is_file()}
    ended = scripts.train(TINY, tiny_run)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*") if path.is_file()} == before


def test_a_finished_run_that_is_lengthened_says_what_its_rate_will_do(scripts, tiny_run, tmp_path):
    longer = ["--dry_run", "--stages=clip", "--config.clip.train.num_steps=4"]
    warming_up = scripts.train(TINY, tiny_run, *longer)  # for 50 updates
    assert warming_up.code == 0 and "learning rate" not in warming_up.err

    run = shutil.copytree(tiny_run, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["config"]["clip"]["train"]["optimizer"]["warmup_steps"] = 1
    (run / "config.json").write_text(json.dumps(record))
    ended = scripts.train(TINY, run, *longer, "--config.clip.train.optimizer.warmup_steps=1")
    assert ended.code == 0, ended
    (line,) = [line for line in ended.err.splitlines() if "learning rate" in line]
    assert line.startswith("warning: clip: after 2 steps of a run of 2, which is now one of 4, the learning rate goes")


def test_print_and_dry_run_leave_nothing_behind(scripts, tmp_path):
    printed = scripts.train(TINY, tmp_path / "run", "--print_config", "--config.seed=5", "--config.init_from=base")
    assert printed.code == 0
    config = json.loads(printed.out)
    assert (config["seed"], config["init_from"], config["decoder"]["train"]["num_steps"]) == (5, "base", 2)
    checked = scripts.train(TINY, tmp_path / "run", "--dry_run")
    assert checked.code == 0, checked
    assert [line.split(":")[0] for line in checked.out.splitlines()] == ["data", *STAGES]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("asked", [True, False])
def test_deterministic_before_a_device_is_touched(scripts, tmp_path, asked):
    """Once JAX has a device, `set_deterministic` is too late."""
    config = tmp_path / "mine.py"
    config.write_text(
        "import __main__\nfrom jax._src import xla_bridge\nfrom configs import quickstart\n"
        "__main__.set_deterministic = lambda: print('touched:', xla_bridge.backends_are_initialized())\n"
        "get_config = lambda: quickstart.get_config('tiny')\n"
    )
    off = [] if asked else [f"--config.{stage}.train.deterministic=False" for stage in STAGES]
    ended = scripts.train(config, tmp_path / "run", "--config.mesh.data=77", *off)
    assert ended.code == 2 and "77x1x1" in ended.err
    assert ended.out == ("touched: False\n" if asked else "")


@pytest.mark.parametrize(
    ("config", "stage", "arguments"),
    [
        ("codec_dalle.py:tiny", "codec", ["--config.data.shapes.num_train=64", "--config.data.shapes.num_eval=16"]),
        *(
            (f"clip.py:{name}", "clip", ["--config.data.shapes.num_train=256", "--config.data.shapes.num_eval=32"])
            for name in ("tiny", "tiny_resnet", "siglip_tiny")
        ),
    ],
)
def test_tiny_sibling_trains(scripts, tmp_path, config, stage, arguments):
    train = {"batch_size": 8, "num_steps": 2, "log_every": 1, "eval_every": 2, "eval_batches": 1, "preview_every": 2}
    arguments = [*arguments, *(f"--config.{stage}.train.{key}={value}" for key, value in train.items())]
    ended = scripts.train(config, tmp_path / "run", *arguments)
    assert ended.code == 0, ended
    assert_trained(tmp_path / "run", stage)


def test_tiny_emoji_run_trains_every_stage(scripts, tmp_path):
    """On the names of eighty emoji, under plain images: the font that draws them is not everywhere."""
    names = [unicodedata.name(chr(code)).lower() for code in range(0x1F600, 0x1F650)]
    shard = [
        {"key": b"%d" % i, "png": encoded_image(np.full((64, 64, 3), 3 * i, np.uint8)), "txt": name.encode()}
        for i, name in enumerate(names)
    ]
    write_shard(tmp_path / "train.tar", shard)
    data = [f"--config.data.path={tmp_path}/*.tar", "--config.data.eval_fraction=0.3"]
    ended = scripts.train("emoji.py:tiny", tmp_path / "run", *data)
    assert ended.code == 0, ended
    for stage in STAGES:
        assert_trained(tmp_path / "run", stage)


@pytest.fixture(scope="module")
def decoder_run(scripts, tiny_run, tmp_path_factory) -> Path:
    """`decoder_1b.py:tiny` on the codec of the tiny run, which is named by a relative path."""
    workdir = tmp_path_factory.mktemp("decoder") / "run"
    codebook_size = json.loads((tiny_run / "config.json").read_text())["config"]["codec"]["model"]["codebook_size"]
    ended = scripts.train(
        "decoder_1b.py:tiny",
        workdir,
        f"--config.decoder.codec_from=../{tiny_run.name}",
        f"--config.decoder.model.codebook_size={codebook_size}",
        cwd=tiny_run,
    )
    assert ended.code == 0, ended
    return workdir


def test_decoder_on_the_codec_of_another_run(scripts, decoder_run, tiny_run, monkeypatch, tmp_path):
    assert_trained(decoder_run, "decoder")
    assert read_run(decoder_run).codec_workdir() == read_run(tiny_run).codec_workdir() == tiny_run
    monkeypatch.chdir(tmp_path)  # The relative path was resolved when the run began.
    samples = dalle_jax.load(decoder_run).generate("a red circle", num_samples=2)
    assert samples.images.shape == (2, 64, 64, 3)


@pytest.mark.parametrize("kind", ["dvae", "vqgan"])
def test_decoder_on_a_published_codec(scripts, tmp_path, kind):
    """Trained, drawn from and encoded with weights in the layout of a release; here random ones, and small."""
    if kind == "dvae":
        conv = ConvConfig(hidden_dim=8, decoder_input_dim=8, num_groups=4, blocks_per_group=1)
        config = CodecConfig(codebook_size=32, conv=conv)
        shapes = dvae_shapes(config)
    else:
        config = VqganConfig(32, 32, (1, 1, 1, 2), 1, (3,), 8, 8)
        shapes = unbox(vqgan.abstract_params(config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    save_codec(FrozenCodec(config, params, {}, 64), tmp_path / "codec")
    run = tmp_path / "run"
    ended = scripts.train("decoder_1b.py:tiny", run, f"--config.decoder.codec_from={tmp_path / 'codec'}")
    assert ended.code == 0, ended
    assert_trained(run, "decoder")
    ended = scripts(
        "generate", f"--workdir={run}", "--prompt=a red circle", "--num_samples=2", f"--out={tmp_path / 'out'}"
    )
    assert ended.code == 0, ended
    assert len(list((tmp_path / "out").glob("**/*.png"))) >= 2


# Fine-tuning


@pytest.fixture(scope="module")
def tuned_run(scripts, tiny_run, tmp_path_factory) -> Path:
    """Fine-tunes decoder and CLIP of the tiny run by the README's command, on the data of the tiny run."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    (command,) = re.findall(r"python -m launch\.train .*--stages(?:.*\\\n)*.*", (ROOT / "README.md").read_text())
    given = ("--config=", "--workdir=", "--config.data.")
    flags = [word for word in shlex.split(command) if word.startswith("--") and not word.startswith(given)]
    assert len(flags) == 4
    ended = scripts.train(TINY, workdir, *(flag.replace("runs/quickstart", str(tiny_run)) for flag in flags))
    assert ended.code == 0, ended
    return workdir


def test_fine_tuning_begins_with_the_weights_of_the_base(tuned_run, tiny_run):
    for stage in ("decoder", "clip"):
        assert_trained(tuned_run, stage)
    assert (tuned_run / "tokenizer.model").read_bytes() == (tiny_run / "tokenizer.model").read_bytes()
    expected, fresh = first_loss(tiny_run), rows(tiny_run, "decoder")[0]["loss"]
    assert rows(tuned_run, "decoder")[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(fresh - expected) > 1e-2  # so that the equality says something


def first_loss(workdir: Path) -> float:
    """Of a run's trained decoder on its first batch; nothing is dropped in the tiny run, so that this is no chance."""
    run = from_config_dict(RunConfig, read_workdir(workdir))
    plan = plan_decoder(run, epath.Path(workdir))
    batch = make_batches(run, plan, Tokenizer(workdir / "tokenizer.model"), "train")[0]
    params = load_params(workdir / "decoder").params
    return plan.task.evaluate(params, {}, [plan.task.prepare(jax.tree.map(jnp.asarray, batch))])["loss"]


def test_fine_tuned_run_draws_with_the_codec_of_its_base(tuned_run, tiny_run):
    assert not (tuned_run / "codec").exists()
    assert read_run(tuned_run).codec_workdir() == tiny_run
    tuned, base = dalle_jax.load(tuned_run), dalle_jax.load(tiny_run)
    samples = tuned.generate("a red circle", num_samples=2, score_fn=clip_jax.load(tuned_run).score)
    np.testing.assert_array_equal(base.decode(samples.tokens), samples.images)


def test_a_config_without_a_codec_is_tuned_on_that_of_its_base(scripts, tuned_run, tmp_path):
    config = tmp_path / "tune.py"
    config.write_text(
        "from configs import quickstart\nfrom dalle_jax.config import to_config_dict\n"
        "def get_config():\n"
        "    config = quickstart.get_config('tiny').to_dict()\n"
        "    del config['codec']\n    return to_config_dict(config)\n"
    )
    checked = scripts.train(config, tmp_path / "run", "--dry_run", f"--config.init_from={tuned_run}")
    assert checked.code == 0, checked
    assert [line.split(":")[0] for line in checked.out.splitlines()] == ["data", "decoder", "clip"]


def test_codec_of_a_run_tuned_from_a_tuned_one(tmp_path, decoder_run, tuned_run, tiny_run):
    for name, base in (("a", tuned_run), ("b", tmp_path / "a"), ("c", decoder_run)):
        run = {"init_from": str(base), "decoder": {"codec_from": None}, "codec": None}
        write_json(tmp_path / name / "config.json", {"format_version": 1, "commit": "", "config": run})
        assert read_run(tmp_path / name).codec_workdir() == tiny_run


def test_a_base_of_smaller_pictures_fits_where_positions_can_be_interpolated(scripts, tiny_run, tmp_path):
    arguments = [f"--config.init_from={tiny_run}", "--stages=clip", "--config.clip.model.vision.image_size=SIZE"]
    size = json.loads((tiny_run / "config.json").read_text())["config"]["clip"]["model"]["vision"]["image_size"]
    larger = [argument.replace("SIZE", str(2 * size)) for argument in arguments]
    ended = scripts.train(TINY, tmp_path / "run", *larger, "--dry_run")
    assert ended.code == 0, ended


@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
def test_base_must_fit_before_the_first_stage_trains(scripts, tiny_run, tmp_path, dry_run):
    """A folder that was begun would refuse the corrected command."""
    run, base = tmp_path / "run", tmp_path / "base"
    ended = scripts.train(TINY, run, f"--config.init_from={tiny_run}", "--config.clip.model.embed_dim=64", *dry_run)
    assert ended.code == 2 and "/clip/checkpoints/2/params does not fit the model: 'text" in ended.err, ended
    base.mkdir()
    for name in ("config.json", "tokenizer.model", "codec", "decoder"):
        (base / name).symlink_to(tiny_run / name)
    ended = scripts.train(TINY, run, f"--config.init_from={base}", *dry_run)
    assert ended.code == 2 and "base holds no trained clip, and the config trains one" in ended.err, ended
    assert len(ended.err.splitlines()) == 1 and not run.exists()
