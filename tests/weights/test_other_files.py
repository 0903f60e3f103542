"""Files of NumPy and Flax, and files that are none of weights: read, or called what they are."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_serialize

from clip_jax.tokenizers.published import load_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.weights.reading import read_settings, read_tensors
from tests.weights.pickled import refused

ARRAYS = {
    "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.float16([1.5]),
    "number": np.array(2, np.int64),
    "none": np.zeros((0, 3), np.float32),
    "brain": np.arange(4).astype(ml_dtypes.bfloat16),
}


def same(found):
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name].read(), array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    same(read_tensors(tmp_path / "a.npz"))
    np.savez_compressed(tmp_path / "b.npz", **ARRAYS)
    refused(tmp_path / "b.npz", "numpy.savez, not savez_compressed")


def member(header, numbers=b"\0" * 24, version=1):
    header = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + numbers


@pytest.mark.parametrize(
    "content, message",
    [
        (member("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"), "'w' is of type object"),
        (member("{'descr': '>f4', 'fortran_order': False, 'shape': (6,), }"), "'w' is of type >f4"),
        (member("{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }"), "should be .* and has 24 bytes"),
        (member("{'descr': '<f4', 'fortran_order': False, 'shape': (-6,), }"), "cannot be read"),
        (member("{'descr': '<f4', 'fortran_order': False, 'shape': (2**9,), }"), "cannot be read"),
        (member("__import__('os').system('touch proof')"), "cannot be read"),
        (member("(" * 9000), "cannot be read"),
        (member("{}", version=9), "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_npz_that_lies(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("w.npy", content)
    refused(tmp_path / "a.npz", message)


def test_msgpack(tmp_path):
    tree = {name: array for name, array in ARRAYS.items() if name != "a/b"} | {"a": {"b": ARRAYS["a/b"]}}
    (tmp_path / "a.msgpack").write_bytes(msgpack_serialize(tree))
    found = read_tensors(tmp_path / "a.msgpack")
    same({name: found[name] for name in ARRAYS})


def extension(*array):
    return msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(array))})


@pytest.mark.parametrize(
    "content, message",
    [
        # Flax would make an array of pointers of it, and follow them.
        (extension((1,), "O", b"\x10" * 8), "'w' is of type O"),
        (extension((1,), "float8_e4m3fn", b"\x10"), "'w' is of type float8_e4m3fn"),
        (extension((7,), "float32", b"\0" * 24), "damaged"),
        (extension((-1,), "float32", b"\0" * 24), "damaged"),
        (extension((2**62, 2**62), "float32", b""), "damaged"),
        (extension("no", "array"), "damaged"),
        (msgpack.packb({"w": msgpack.ExtType(2, b"x")}), "'w' is not an array"),
        (msgpack.packb({"w": {"__msgpack_chunked_array__": True}}), "'w' is of over 1 GiB"),
        (msgpack.packb({"params": {}}), "holds no tensors"),
        (b"\x81\xa1w" * 5000, "damaged"),
        (b"\xdf\xff\xff\xff\xff\xa1w", "damaged"),
    ],
)
def test_msgpack_that_lies(tmp_path, content, message):
    (tmp_path / "a.msgpack").write_bytes(content)
    refused(tmp_path / "a.msgpack", message)


def tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.pt"))
    return out.getvalue()


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.npz"])
@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 605157884\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Sign in</html>", "HTML page"),
        (b"\n <HTML><body>", "HTML page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML document"),
        (json.dumps({"error": "not found"}).encode(), "JSON"),
        (gzip.compress(b"x" * 100, mtime=0), "gzip"),
        (tar(), "tar archive"),
        (b"GGUF" + bytes(100), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x08\x07\x12\x07pytorch" + bytes(100), "ONNX"),
        (b"Not found", "is text"),
    ],
)
def test_what_a_file_is_that_is_none_of_weights(tmp_path, content, told, name):
    (tmp_path / name).write_bytes(content)
    assert "not a file of weights" in refused(tmp_path / name, told)


@pytest.mark.parametrize(
    "path, told",
    [
        (
            "owner/name",
            "does not exist; weights are not downloaded here: hf download owner/name --local-dir FOLDER",
        ),
        ("/nowhere/a.pt", "does not exist; weights are not downloaded here: hf download OWNER/NAME"),
        ("hf://owner/name", "not downloaded here; hf download owner/name"),
        ("hf-hub:owner/name", "not downloaded here; hf download owner/name"),
        ("https://huggingface.co/owner/name/resolve/main/a.pt", "not downloaded here; hf download owner/name"),
        ("https://elsewhere.org/a.pt", "copy the files to a disk"),
        ("s3://bucket/a.pt", "copy the files to a disk"),
    ],
)
def test_paths_that_are_not_there(path, told):
    with pytest.raises(UserError, match=told):
        read_tensors(path)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", **ARRAYS)
    same(read_tensors("~/a.npz"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "spiece.model", "merges.txt"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "pointer of Git LFS"), (b"<html>", "HTML page")],
    ids=["pointer", "page"],
)
def test_files_beside_weights_that_did_not_arrive_are_called_what_they_are(tmp_path, name, content, kind):
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is an? {kind}"):
        if name == "config.json":
            read_settings(str(tmp_path / name))
        else:
            load_tokenizer(tmp_path)
