"""What a file is that holds no weights, by its first bytes: most often what came in place of a download."""

import os
import tarfile

from dalle_jax.fetched import NOT_FETCHED, told_by

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    *NOT_FETCHED,
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
"""As `NOT_FETCHED`, of all files that are none of weights."""


def foreign(path: str) -> str:
    """What a file is that is none of weights, as the end of a sentence whose subject is the file."""
    if os.path.getsize(path) == 0:
        return "is empty: download it anew"
    with open(path, "rb") as file:
        head = file.read(512)
    told = told_by(head, _BEGINNINGS)
    if told:
        return told
    if tarfile.is_tarfile(path):
        return "is a tar archive: unpack it first"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "is text"
    return "begins as none of these does"
