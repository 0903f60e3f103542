"""Encoding as a person does it, and the decoder that trains on what came of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dalle_jax.codec import load_codec
from dalle_jax.config import write_json
from dalle_jax.data.config import DataConfig, ShapesConfig
from dalle_jax.data.encoded.source import Encoded, read_manifest
from dalle_jax.data.images.decode import decode
from dalle_jax.data.sources import open_source
from dalle_jax.training.checkpoints.workdir import saved_steps

pytestmark = pytest.mark.entry

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.py"
TINY = f"--config={CONFIG}:tiny"


def encode(scripts, run, out, *arguments):
    return scripts("encode", TINY, scripts.data, f"--workdir={run}", f"--out={out}", "--shard_size=100", *arguments)


@pytest.fixture(scope="module")
def encoded(scripts, tiny_run, tmp_path_factory) -> Path:
    """The tiny run's data in shards of 100: 256 to train on and 32 held out."""
    out = tmp_path_factory.mktemp("encoded") / "shards"
    ended = encode(scripts, tiny_run, out)
    assert ended.code == 0, ended
    assert "train: 256 records of 1 crops in 3 shards\neval: 32 records of 1 crops in 1 shards" in ended.out
    return out


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_tokens_are_the_codecs(encoded, scripts, tiny_run):
    codec, manifest = load_codec(tiny_run), read_manifest(str(encoded))
    assert manifest.encoding == codec.encoding
    assert (manifest.encoding.grid_size, manifest.encoding.image_size) == (8, 64)
    shapes = ShapesConfig(num_train=256, num_eval=32, data_dir=scripts.data.partition("=")[2])
    pictures = open_source(DataConfig(shapes=shapes), "eval")
    held_out = Encoded(str(encoded), "eval")
    images = np.stack([decode(pictures[i].image, max_pixels=10_000) for i in range(16)])
    tokens = np.stack([held_out[i].tokens[0] for i in range(16)])
    assert np.mean(np.asarray(codec.encode(images)) == tokens) > 0.999
    assert held_out[3].captions == pictures[3].captions and held_out[3].key == pictures[3].key


def test_a_second_time_there_is_nothing_to_do(encoded, scripts, tiny_run):
    before = contents(encoded)
    checked = encode(scripts, tiny_run, encoded, "--dry_run")
    assert checked.code == 0 and "train: 256 samples of shapes/train, 1 crop(s) 'none', 3 shards" in checked.out
    assert checked.out.count(" 0 to make in this process of 1") == 2
    assert encode(scripts, tiny_run, encoded).code == 0
    after = contents(encoded)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert {name for name in before if before[name] != after[name]} <= {"manifest.json"}


def test_what_is_missing_is_made_again_the_same(encoded, scripts, tiny_run, tmp_path):
    copy = Path(shutil.copytree(encoded, tmp_path / "copy"))
    lost = copy / "train" / "00001-of-00003.array_record"
    lost.unlink()
    (copy / "manifest.json").unlink()
    ended = scripts("encode", "--verify", f"--out={copy}")
    assert ended.code == 2 and "there is no" in ended.err and "manifest.json" in ended.err
    assert encode(scripts, tiny_run, copy).code == 0
    made, before = contents(copy), contents(encoded)
    assert {name: data for name, (data, _) in made.items()} == {name: data for name, (data, _) in before.items()}
    assert scripts("encode", "--verify", f"--out={copy}").code == 0
    lost.write_bytes(lost.read_bytes()[:-1] + b"x")
    ended = scripts("encode", "--verify", f"--out={copy}")
    assert ended.code == 2 and "1 shards in" in ended.err and "00001-of-00003" in ended.err


def test_the_codec_of_a_run_for_a_config_without_one(encoded, scripts, tiny_run, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs import quickstart\n"
        "def get_config():\n"
        "    config = quickstart.get_config('tiny')\n"
        "    with config.unlocked():\n"
        "        del config.codec\n"
        "    return config\n"
    )
    options = [f"--config={config}", scripts.data, "--dry_run", f"--out={tmp_path / 'out'}"]
    ended = scripts("encode", *options, f"--workdir={tiny_run}")
    codec = read_manifest(str(encoded)).encoding.codec
    assert ended.code == 0 and ended.out.count(f"codec {codec}, ") == 2, ended
    assert_refused(scripts("encode", *options), "no codec given", "--workdir=FOLDER")


def train(scripts, run, workdir, *arguments, config="quickstart.py:tiny"):
    return scripts.train(config, workdir, "--stages=decoder", f"--config.decoder.codec_from={run}", *arguments)


def losses(workdir: Path) -> list[float]:
    rows = [json.loads(line) for line in (workdir / "decoder" / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows for name in ("loss", "eval/loss") if name in row]


def test_training_on_tokens_is_training_on_pictures(encoded, scripts, tiny_run, tmp_path):
    where = ["--config.data.source=encoded", f"--config.data.path={encoded}"]
    checked = train(scripts, tiny_run, tmp_path / "run", *where, "--dry_run")
    assert checked.code == 0, checked
    account, plan = checked.out.splitlines()
    assert account == (
        "data: 288 encoded images, 288 with captions, 32 held out (11.11%; a split of its own): "
        f"encoded {encoded} train and encoded {encoded} eval"
    )
    assert plan.startswith("decoder: ")
    ended = train(scripts, tiny_run, tmp_path / "run", *where)
    assert ended.code == 0, ended
    assert saved_steps(tmp_path / "run" / "decoder") == [2]
    assert list((tmp_path / "run" / "decoder" / "previews").iterdir())
    assert losses(tmp_path / "run") == pytest.approx(losses(tiny_run), rel=1e-3)


def test_a_mixture_of_pictures_and_tokens(encoded, scripts, tiny_run, tmp_path):
    shapes = f"shapes=ShapesConfig(num_train=256, num_eval=32, data_dir={scripts.data.partition('=')[2]!r})"
    config = tmp_path / "mixed.py"
    config.write_text(
        "from configs.quickstart import *\nfrom dalle_jax.data.config import MixturePart, SourceKind\n"
        "def get_config():\n"
        f"    parts = (MixturePart(name='drawn', weight=1.0, {shapes}),\n"
        f"             MixturePart(name='tokens', weight=3.0, source=SourceKind.ENCODED, path={str(encoded)!r}))\n"
        "    data = DataConfig(mixture=parts, image_size=64)\n"
        "    tokenizer = TokenizerConfig(VOCAB_SIZE, TEXT_LENGTH, bpe_dropout=0.0)\n"
        "    return to_config_dict({'seed': 0, 'data': data, 'tokenizer': tokenizer, 'mesh': MeshConfig(),\n"
        "                           'decoder': two_steps(decoder())})\n"
    )
    run = tmp_path / "run"
    ended = scripts("train", f"--config={config}", f"--config.decoder.codec_from={tiny_run}", f"--workdir={run}")
    assert ended.code == 0, ended
    rows = [json.loads(line) for line in (run / "decoder" / "metrics.jsonl").read_text().splitlines()]
    counts = [(row["samples/drawn"], row["samples/tokens"]) for row in rows if "samples/drawn" in row]
    assert counts[-1] == (4.0, 12.0) and np.all(np.isfinite(losses(run)))


def assert_refused(ended, *parts):
    assert ended.code == 2, ended
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in line, line


def test_what_cannot_be_trained_on_tokens(encoded, scripts, tiny_run, tmp_path):
    where = ["--config.data.source=encoded", f"--config.data.path={encoded}"]
    run = tmp_path / "run"
    assert_refused(scripts.train("quickstart.py:tiny", run, *where), "holds tokens", "the codec learns from images")
    ended = scripts.train("quickstart.py:tiny", run, *where, "--stages=clip")
    assert_refused(ended, "holds tokens", "the clip learns from images")
    copy = Path(shutil.copytree(encoded, tmp_path / "copy"))
    record = json.loads((copy / "manifest.json").read_text())
    for key, value in (("codec", "another"), ("grid_size", 16), ("codebook_size", 77), ("image_size", 32)):
        write_json(copy / "manifest.json", record | {"encoding": record["encoding"] | {key: value}})
        where[1] = f"--config.data.path={copy}"
        ended = train(scripts, tiny_run, run, *where)
        assert_refused(ended, "encoded by another codec than the decoder's", f"({key} {value}, and not ")
    (copy / "train" / "00001-of-00003.array_record").unlink()
    assert_refused(train(scripts, tiny_run, run, *where), "1 of the 3 shards", "00001-of-00003")
    assert not run.exists()


def test_what_cannot_be_encoded(encoded, scripts, tiny_run, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    assert_refused(scripts("encode", TINY, scripts.data), "--out=DIR")
    assert_refused(scripts("encode", TINY, scripts.data, out), "no codec given", "--codec=FOLDER")
    assert_refused(scripts("encode", TINY, scripts.data, out, f"--codec={tmp_path}"), "config.json is missing")
    for augment in ("none", "square"):
        ended = encode(scripts, tiny_run, tmp_path / "out", "--crops=4", f"--config.decoder.augment={augment}")
        assert_refused(ended, "--crops=4", f"all crops are the same under config.decoder.augment='{augment}'")
    codec = Path(__file__).parents[2] / "configs" / "codec_dalle.py"
    ended = scripts("encode", f"--config={codec}:tiny", scripts.data, out, f"--codec={tiny_run}")
    assert_refused(ended, "the config has no section 'decoder'")
    again = ["--config.data.source=encoded", f"--config.data.path={encoded}"]
    assert_refused(encode(scripts, tiny_run, tmp_path / "out", *again), "is encoded already")
    ended = encode(scripts, tiny_run, encoded, "--config.decoder.augment=dalle", "--crops=2")
    assert_refused(ended, "shards of another encoding", "crops (1 there, 2 now)")
    assert not (tmp_path / "out").exists()
