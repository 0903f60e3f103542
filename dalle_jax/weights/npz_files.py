"""NumPy's `.npz` archives: an array in each member, stored as it is, so that it can be read in place."""

import math
import tokenize
from typing import BinaryIO

import ml_dtypes
import numpy as np

from dalle_jax.errors import UserError
from dalle_jax.weights.archive import ZIP_MAGIC, members
from dalle_jax.weights.tensors import DTYPES, Tensor, Unread, dense_strides, whole

_SUFFIX = ".npy"
_FAULTS = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, EOFError, OSError, tokenize.TokenError)


def is_npz(path: str) -> bool:
    """Whether a file is an archive of arrays and of nothing else."""
    with open(path, "rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return False
    names = list(members(path))
    return bool(names) and all(name.endswith(_SUFFIX) for name in names)


def read_npz(path: str) -> dict[str, Tensor]:
    """The arrays of an archive by name; `Unread` where one is of a type that is not read here.

    Raises:
      UserError: the archive is damaged or compressed, or lies about sizes.
    """
    tensors = {}
    with open(path, "rb") as file:
        for member_name, member in members(path).items():
            name = member_name.removesuffix(_SUFFIX)
            if not member.stored:
                raise UserError(f"{path} is compressed: write it again with numpy.savez, not savez_compressed")
            file.seek(member.offset)
            tensors[name] = _tensor(file, path, name, member.offset + member.size)
    return tensors


def _tensor(file: BinaryIO, path: str, name: str, end: int) -> Tensor:
    try:
        shape, fortran, dtype = _header(file)
        shape = whole(shape)
    except _FAULTS as error:
        raise UserError(f"{path} is damaged: the header of '{name}' cannot be read ({error})") from error
    if dtype == np.dtype("V2"):  # what NumPy makes of bfloat16
        dtype = np.dtype(ml_dtypes.bfloat16)
    if dtype not in DTYPES.values():
        return Unread(f"{path}: '{name}' is of type {str(dtype)[:100]}, which is not read here")
    offset = file.tell()
    if offset + math.prod(shape) * dtype.itemsize != end:
        raise UserError(f"{path} is refused: '{name}' should be {shape} of {dtype} and has {end - offset} bytes")
    strides = dense_strides(shape[::-1])[::-1] if fortran else dense_strides(shape)
    return Tensor(path, offset, dtype, shape, strides)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads shape, order and type; the header is a literal, not run."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"version {version}")
    return read[version](file)
