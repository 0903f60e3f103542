"""URLs of a kind that is not read are refused in one line wherever a path is taken, and nothing is made of them."""

import pytest

import clip_jax
import dalle_jax
from clip_jax.tokenizers.published import load_tokenizer
from dalle_jax import storage
from dalle_jax.codec import load_codec
from dalle_jax.config import read_json, write_json
from dalle_jax.data import paths
from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.images.arrays import read_image
from dalle_jax.data.sources import open_source, splits_of
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.workdir import open_workdir, read_workdir, saved_steps
from launch.run.source_kind import guess_source

ADDRESSES = ["s3://bucket/x", "https://example.org/x", "hf://datasets/a/b", "file:///tmp/x", "gcs://b/x", "az://b/x"]


def open_kind(kind):
    return lambda path: open_source(DataConfig(source=kind, path=path))


TAKERS = {
    **{kind.value: open_kind(kind) for kind in SourceKind if kind is not SourceKind.SHAPES},
    "a range of tars": lambda path: paths.expand(f"data/0.tar,{path}/{{00..03}}.tar", ".tar"),
    "splits_of": lambda path: splits_of(DataConfig(source=SourceKind.ENCODED, path=path)),
    "guess_source": guess_source,
    "open_workdir": lambda path: open_workdir(path, {}),
    "read_workdir": read_workdir,
    "saved_steps": saved_steps,
    "load": dalle_jax.load,
    "clip_jax.load": clip_jax.load,
    "load_codec": load_codec,
    "Tokenizer": Tokenizer,
    "load_tokenizer": load_tokenizer,
    "read_image": read_image,
    "read_json": read_json,
    "write_json": lambda path: write_json(path, {}),
    "read": storage.read,
    "walk": storage.walk,
}


@pytest.mark.parametrize("taker", TAKERS)
def test_an_address_that_is_not_read(taker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ADDRESSES:
        scheme = address.partition("://")[0]
        with pytest.raises(
            UserError, match=f"{scheme}://.* is not read or written|hf://.* weights are not downloaded here"
        ):
            TAKERS[taker](address)
    assert list(tmp_path.iterdir()) == []


def test_what_is_advised():
    with pytest.raises(UserError, match="write the path alone, '/tmp/x'"):
        storage.is_remote("file:///tmp/x")
    with pytest.raises(UserError, match="copy the files to a disk or to gs://"):
        storage.is_remote("s3://bucket/x")
    assert storage.is_remote("gs://bucket/x") and not storage.is_remote("/tmp/x:y")
    with pytest.raises(UserError, match="--out=gs://b/x: name a folder on a disk"):
        storage.local_folder("gs://b/x", "--out")
