"""The tokenizer's script, as a person runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from dalle_jax.data.config import SourceKind
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.errors import UserError

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


def test_what_data_means(tmp_path):
    from launch.data_path import guess_source

    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").touch()
    (tmp_path / "tfds").mkdir()
    (tmp_path / "tfds" / "dataset_info.json").touch()
    guesses = {
        "shapes": SourceKind.SHAPES,
        str(tmp_path): SourceKind.FOLDER,
        str(tmp_path / "tars"): SourceKind.WEBDATASET,
        "data/{00..99}.tar": SourceKind.WEBDATASET,
        str(tmp_path / "tfds"): SourceKind.TFDS,
        "coco_captions": SourceKind.TFDS,
        "eurosat/rgb": SourceKind.TFDS,
        "imagenet_v2/matched-frequency": SourceKind.TFDS,
    }
    assert {data: guess_source(data) for data in guesses} == guesses
    for path in ("no/where", "mnist/no/where", "/mnist/train", "./mnist"):
        with pytest.raises(UserError, match="does not exist"):
            guess_source(path)
