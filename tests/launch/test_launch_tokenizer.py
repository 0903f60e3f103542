"""The tokenizer's script, as a person runs it."""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dalle_jax.data.config import SourceKind, TarKey
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.errors import UserError
from launch.run import caption_texts

pytestmark = pytest.mark.entry


def run(*arguments: str) -> subprocess.CompletedProcess:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "launch.tokenizer", *arguments], cwd=root, capture_output=True, text=True
    )


def test_from_a_text_file(tmp_path):
    (tmp_path / "captions.txt").write_text("a red dog\na green dog\n\nthe red hill\n" * 5)
    out = tmp_path / "tokenizer.model"
    result = run(f"--data={tmp_path / 'captions.txt'}", "--vocab_size=24", f"--out={out}")
    assert result.returncode == 0, result.stderr
    tokenizer = Tokenizer(out)
    assert f"24 pieces, fingerprint {tokenizer.fingerprint}" in result.stderr
    result = run(f"--data={tmp_path / 'captions.txt'}", "--vocab_size=16384", f"--out={out}")
    assert result.returncode == 2
    assert result.stderr.startswith("error: these captions cannot give a vocabulary of 16384")
    assert len(result.stderr.splitlines()) == 1
    assert Tokenizer(out).fingerprint == tokenizer.fingerprint  # what was there is left alone


def texts(path: Path) -> list[str]:
    return list(caption_texts.texts(str(path)))


def picture(path: Path) -> bytes:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path.read_bytes()


def test_tables_and_layouts_are_read_as_by_a_run(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    wanted = ["a red cat", "a dog"]
    for name, text in {
        "captions.csv": "file_name,caption\na.jpg,a red cat\nb.jpg,a dog\n",
        "captions.txt": "image,caption\na.jpg,a red cat\nb.jpg,a dog\n",
        "list.tsv": "a.jpg\ta red cat\nb.jpg\ta dog\n",
        "x.token": "a.jpg#0\ta red cat\nb.jpg#0\ta dog\n",
        "x.jsonl": '{"image": "a.jpg", "text": "a red cat"}\n{"image": "b.jpg", "text": "a dog"}\n',
    }.items():
        (tmp_path / name).write_text(text)
        assert texts(tmp_path / name) == wanted, name
    assert texts(tmp_path) == wanted
    (tmp_path / "plain.txt").write_text("a red cat\n\n a dog \n")
    assert texts(tmp_path / "plain.txt") == wanted
    image = pa.array([(tmp_path / f"{name}.jpg").read_bytes() for name in "ab"])
    pq.write_table(pa.table({"image": image, "text": wanted}), tmp_path / "x.parquet")
    assert texts(tmp_path / "x.parquet") == wanted


def test_what_is_no_text(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(Path(__file__), "x.txt")
    jpeg = picture(tmp_path / "photo.jpg")
    (tmp_path / "photo.txt").write_bytes(jpeg)
    (tmp_path / "latin1.txt").write_bytes("a café\n".encode("latin-1"))
    (tmp_path / "captions.csv").write_text("file_name,caption\nnone.jpg,a red cat\n")
    (tmp_path / "annotations.json").write_text('{"annotations": [{"id": 1, "caption": "a cat"}]}')
    for name, message in {
        "x.tar.gz": "zero bytes|not UTF-8", "photo.jpg": "zero bytes|not UTF-8", "photo.txt": "zero bytes|not UTF-8",
        "latin1.txt": "line 1 is not UTF-8.*iconv", "captions.csv": "none of the 1 images", "annotations.json": "COCO",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            texts(tmp_path / name)


def test_options_without_effect(tmp_path):
    (tmp_path / "plain.txt").write_text("a red cat\n")
    (tmp_path / "mine").mkdir()
    picture(tmp_path / "mine" / "a.jpg")
    (tmp_path / "mine" / "a.txt").write_text("a red cat\n")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "mine", "")
    stem = {"key": TarKey.STEM}
    for data, options, flag in (
        ("plain.txt", stem, "--key=stem"), ("plain.txt", {"split": "val"}, "--split=val"),
        ("plain.txt", {"caption_field": "title"}, "--caption_field=title"), ("mine", stem, "--key=stem"),
        ("mine", {"caption_field": "title"}, "--caption_field"), 
        ("x.tar", {"caption_field": "title"}, "--caption_field"),
        ("x.tar", {"split": "val"}, "--split"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"^{flag}.* has no effect: ") as refused:
            list(caption_texts.texts(str(tmp_path / data), **options))
        assert "config.data" not in str(refused.value).replace("config.data.source", "")
    with pytest.raises(UserError, match="^--data=.* has no split 'val'"):
        list(caption_texts.texts(str(tmp_path / "mine"), split="val"))
    with pytest.raises(UserError, match="^--caption_field='title' has no effect: "):
        list(caption_texts.texts("shapes", caption_field="title"))
    assert list(caption_texts.texts(str(tmp_path / "x.tar"), **stem)) == ["a red cat"]


def test_what_data_means(tmp_path):
    from launch.run.source_kind import guess_source

    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").touch()
    (tmp_path / "tfds").mkdir()
    (tmp_path / "tfds" / "dataset_info.json").touch()
    for name in ("parquet/train-0.parquet", "metadata/metadata.parquet"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    guesses = {
        "shapes": SourceKind.SHAPES,
        str(tmp_path): SourceKind.FOLDER,
        str(tmp_path / "tars"): SourceKind.WEBDATASET,
        "data/{00..99}.tar": SourceKind.WEBDATASET,
        str(tmp_path / "tfds"): SourceKind.TFDS,
        str(tmp_path / "parquet"): SourceKind.PARQUET,
        str(tmp_path / "metadata"): SourceKind.FOLDER,
        str(tmp_path / "metadata" / "metadata.parquet"): SourceKind.FOLDER,
        "data/{0..9}.parquet": SourceKind.PARQUET,
        "coco_captions": SourceKind.TFDS,
        "eurosat/rgb": SourceKind.TFDS,
        "imagenet_v2/matched-frequency": SourceKind.TFDS,
    }
    assert {data: guess_source(data) for data in guesses} == guesses
    for path in ("no/where", "mnist/no/where", "/mnist/train", "./mnist"):
        with pytest.raises(UserError, match="does not exist"):
            guess_source(path)
