"""Files in the safetensors format: a header of names, types and places, then the numbers."""

import json
import os
import struct
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dalle_jax.errors import UserError
from dalle_jax.weights.tensors import DTYPES, Tensor, Unread, dense_strides

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def is_safetensors(path: str) -> bool:
    """Whether a file begins as one of this format does: the length of the header, and its first brace."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_safetensors(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name; `Unread` where one is of a type that is not read here.

    Raises:
      UserError: the file is truncated, or its header lies about sizes or places.
    """
    try:
        with safe_open(path, framework="numpy"):  # checks that types, shapes and places agree and fill the file
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is a truncated or damaged safetensors file ({error}): fetch it again") from error
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _tensor(path, 8 + length, name, entry) for name, entry in header.items()}


def _tensor(path: str, base: int, name: str, entry: dict[str, Any]) -> Tensor:
    if entry["dtype"] not in _DTYPES:
        return Unread(f"{path}: '{name}' is of type {entry['dtype']}, which is not read here")
    shape = tuple(entry["shape"])
    dtype = DTYPES[_DTYPES[entry["dtype"]]]
    return Tensor(path, base + entry["data_offsets"][0], dtype, shape, dense_strides(shape))


def write_safetensors(path: str | os.PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Writes a file as PyTorch's libraries expect it."""
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)  # the library makes it readable by its owner alone
