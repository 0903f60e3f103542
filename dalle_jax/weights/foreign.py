"""What a file is that holds no weights, by its first bytes: most often what came in place of a download."""

import os
import tarfile

from dalle_jax.errors import UserError

_NOT_FETCHED: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs.github.com",
        "is a pointer of Git LFS, not the file that it points to: fetch that with `git lfs pull`",
    ),
    (b"<!doctype html", "is an HTML page, such as a server sends in place of a file: download it anew"),
    (b"<html", "is an HTML page, such as a server sends in place of a file: download it anew"),
    (b"<?xml", "is an XML document, such as a server sends in place of a file: download it anew"),
)
"""Bytes, in lower case where they are text, and what follows `it`: what stands where a file should."""

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    *_NOT_FETCHED,
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"BZh", "is compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first"),
    (b"(\xb5/\xfd", "is compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive: unpack it first"),
    (b"GGUF", "is a GGUF file of llama.cpp's"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them"),
    (b"\x93NUMPY", "is a single NumPy array"),
    (b"\x08\x07\x12", "looks like a model for ONNX"),
    (b"\x08\x08\x12", "looks like a model for ONNX"),
    (b"{", "is JSON, without numbers"),
)
"""Likewise, of all files that are none of weights."""


def foreign(path: str) -> str:
    """What a file is that is none of weights, as the end of a sentence whose subject is the file."""
    if os.path.getsize(path) == 0:
        return "is empty: download it anew"
    with open(path, "rb") as file:
        head = file.read(512)
    told = _told(head, _BEGINNINGS)
    if told:
        return told
    if tarfile.is_tarfile(path):
        return "is a tar archive: unpack it first"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "is text"
    return "begins as none of these does"


def check_fetched(content: bytes, path: str | os.PathLike) -> None:
    """Raises `UserError` where what stands beside weights is what came in place of a download."""
    told = _told(content[:512], _NOT_FETCHED)
    if told:
        raise UserError(f"{os.fspath(path)} {told}")


def _told(head: bytes, beginnings: tuple[tuple[bytes, str], ...]) -> str | None:
    text = head.lstrip().lower()
    return next((what for start, what in beginnings if head.startswith(start) or text.startswith(start)), None)
