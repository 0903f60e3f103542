"""Tensors that are still in their file: name, shape and dtype are known, numbers are read when they are asked for."""

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

from dalle_jax.errors import UserError
from dalle_jax.weights.stand_ins import called

DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}
"""By PyTorch's name."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file."""

    path: str
    offset: int
    """Of its first element, in bytes from the start of the file."""
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Distance between neighbours along each dimension, in elements."""

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The numbers, read-only, mapped from the file: they are in memory only while they are looked at.

        Copy what is to outlive the file.
        """
        if self.size == 0:
            return np.zeros(self.shape, self.dtype)
        length = span(self.shape, self.strides) * self.dtype.itemsize
        raw = np.memmap(self.path, np.uint8, "r", self.offset, (length,))
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        flat = np.asarray(raw).view(self.dtype)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


_MAX_AXES = 64  # of NumPy's arrays


def whole(values: Any) -> tuple[int, ...]:
    """Sizes that are integers from 0 that a machine can count to.

    Raises:
      TypeError: they are not integers.
      ValueError: they are too many, or no sizes.
    """
    values = tuple(values)
    if len(values) > _MAX_AXES:
        raise ValueError(f"{len(values)} sizes are not sizes of a tensor")
    for value in values:
        if type(value) is not int:
            raise TypeError(f"sizes with {called(value)} among them are not sizes")
        if not 0 <= value < 1 << 63:
            raise ValueError(f"sizes {'below 0' if value < 0 else 'of over 63 bits'} are not sizes")
    return values


@dataclasses.dataclass(frozen=True)
class Held(Tensor):
    """A tensor whose numbers are in memory: its file has them in no form that could be mapped."""

    numbers: np.ndarray

    @classmethod
    def of(cls, path: str, numbers: np.ndarray) -> "Held":
        """A tensor of a file."""
        return cls(path, 0, numbers.dtype, numbers.shape, (), numbers)

    def read(self) -> np.ndarray:
        """The numbers."""
        return self.numbers


class Unread(Tensor):
    """A tensor that cannot be read here: whatever asks for its shape or numbers is told why."""

    def __init__(self, why: str):
        """Args: why: the message, which names the file and the tensor."""
        self.why = why

    def _refuse(self) -> Any:
        raise UserError(self.why)

    path = offset = dtype = shape = strides = property(_refuse)

    def __repr__(self) -> str:
        return f"Unread({self.why!r})"


def span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided tensor, both included; 0 where there is none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor in row-major order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements of a strided tensor may share memory (sizes and strides nest for all that do not)."""
    if 0 in shape:
        return False
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1):
        if stride <= reach:
            return True
        reach += (size - 1) * stride
    return False
