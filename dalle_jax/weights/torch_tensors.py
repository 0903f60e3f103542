"""How PyTorch's pickles describe tensors: views of storages, each storage a run of numbers elsewhere in the file."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dalle_jax.errors import UserError
from dalle_jax.weights.pickles import ForbiddenCall, Global, StandIn, called, forbidden
from dalle_jax.weights.tensors import DTYPES, Tensor, overlaps, span

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",  # counted in bytes
}

_MAX_AXES = 64  # of NumPy's arrays


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row, of which tensors are views."""

    path: str
    offset: int
    """Bytes from the start of the file."""
    dtype: np.dtype
    numel: int


@dataclasses.dataclass(frozen=True)
class StorageName:
    """What a persistent id says of a storage."""

    key: str
    dtype: np.dtype
    numel: int

    @classmethod
    def of(cls, identity: Any) -> "StorageName":
        """Reads `("storage", type, key, location, numel, ...)`.

        Raises:
          ValueError: it is something else, or of a type that is not read here.
        """
        kind, storage_type, key, _, numel = identity[:5]
        name = storage_type.name.rsplit(".", 1)[-1] if isinstance(storage_type, Global) else ""
        if kind != "storage" or not isinstance(key, str) or name not in _STORAGES:
            raise ValueError(f"it stores numbers as {name or called(storage_type)}, which is not read here")
        return cls(key, DTYPES[_STORAGES[name]], *whole((numel,)))

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def tensor_calls(path: str) -> dict[str, Callable[..., Any]]:
    """The functions that PyTorch's pickles of a file may call, by name."""
    calls: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch.Size": lambda sizes=(): tuple(sizes),
        "torch.device": lambda *args: StandIn("torch.device", args),
        "torch.jit._pickle.build_boollist": list,
        "torch.jit._pickle.build_doublelist": list,
        "torch.jit._pickle.build_intlist": list,
        "torch.jit._pickle.build_tensorlist": list,
        "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
    }
    return calls | {"torch._tensor._rebuild_from_type_v2": functools.partial(_tensor_with_state, path, calls)}


def whole(values: Any) -> tuple[int, ...]:
    """Sizes that are integers from 0 that a machine can count to.

    Raises:
      ValueError: they are not.
    """
    values = tuple(values)
    if len(values) > _MAX_AXES:
        raise ValueError(f"{len(values)} sizes are no sizes of a tensor")
    for value in values:
        if type(value) is not int:
            raise ValueError(f"sizes with {called(value)} among them are no sizes")
        if not 0 <= value < 1 << 63:
            raise ValueError(f"sizes {'below 0' if value < 0 else 'of over 63 bits'} are no sizes")
    return values


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """A view that lies inside its storage for certain."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    (offset,), shape, strides = whole((offset,)), whole(shape), whole(strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} has {len(strides)} strides")
    where = f"{storage.path} is refused: a tensor of shape {shape}"
    if offset + span(shape, strides) > storage.numel:
        raise UserError(f"{where} reaches over the end of its storage of {storage.numel} elements")
    if overlaps(shape, strides):
        raise UserError(f"{where} and strides {strides} overlaps itself")
    dtype = storage.dtype
    return Tensor(storage.path, storage.offset + offset * dtype.itemsize, dtype, shape, strides)


def _tensor_of_bytes(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any):
    """The form for storages without a type: it comes with the tensor."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if not isinstance(storage, Storage) or name not in DTYPES:
        raise ValueError(f"a tensor is of dtype {name or called(dtype)}, which is not read here")
    kind = DTYPES[name]
    numel = storage.numel * storage.dtype.itemsize // kind.itemsize
    return _tensor(dataclasses.replace(storage, dtype=kind, numel=numel), offset, shape, strides)


def _tensor_with_state(path: str, calls: dict[str, Callable[..., Any]], function: Any, cls: Any, args: Any, state: Any):
    """A tensor with attributes, rebuilt by one of the other functions."""
    if not isinstance(function, Global) or function.name not in calls:
        raise ForbiddenCall(forbidden(path, called(function)))
    return calls[function.name](*args)
