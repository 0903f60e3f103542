"""How PyTorch's pickles describe tensors: views of storages, each storage a run of numbers elsewhere in the file."""

import dataclasses
from typing import Any

import numpy as np

from dalle_jax.errors import UserError
from dalle_jax.weights.stand_ins import Call, Global, StandIn, apply, called, shortened
from dalle_jax.weights.tensors import DTYPES, Tensor, overlaps, span, whole

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

_UNREAD = {
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
    "QInt32Storage": 4,
    "QInt8Storage": 1,
    "QUInt2x4Storage": 1,
    "QUInt4x2Storage": 1,
    "QUInt8Storage": 1,
}
"""Bytes of an element of storages that can be stepped over, and whose tensors are not read."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row, of which tensors are views."""

    path: str
    offset: int
    """Bytes from the start of the file."""
    dtype: np.dtype
    numel: int
    fault: str = ""
    """Why its tensors are not read."""


@dataclasses.dataclass(frozen=True)
class StorageName:
    """What a persistent id says of a storage."""

    key: str
    dtype: np.dtype
    numel: int
    fault: str = ""
    """Why its tensors are not read."""

    @classmethod
    def of(cls, identity: Any) -> "StorageName":
        """Reads `("storage", type, key, location, numel, ...)`.

        Raises:
          ValueError: it is something else, or of an unknown type.
        """
        kind, storage_type, key, _, numel = identity[:5]
        name = storage_type.name.rsplit(".", 1)[-1] if isinstance(storage_type, Global) else ""
        if kind != "storage" or not isinstance(key, str) or name not in _STORAGES.keys() | _UNREAD.keys():
            raise ValueError(f"it stores numbers as {shortened(name) or called(storage_type)}, which is not read here")
        (numel,) = whole((numel,))
        if name in _UNREAD:
            return cls(key, np.dtype(f"V{_UNREAD[name]}"), numel, f"is stored as {name}, which is not read here")
        return cls(key, DTYPES[_STORAGES[name]], numel)

    @property
    def nbytes(self) -> int:
        """Length of the storage."""
        return self.numel * self.dtype.itemsize


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor | StandIn:
    """A view that lies inside its storage for certain."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    if storage.fault:
        return StandIn("a tensor", fault=storage.fault)
    (offset,), shape, strides = whole((offset,)), whole(shape), whole(strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} has {len(strides)} strides")
    if offset + span(shape, strides) > storage.numel:
        raise UserError(
            f"{storage.path} is refused: a tensor of shape {shape} reaches over the end of its storage of "
            f"{storage.numel} elements"
        )
    if overlaps(shape, strides):
        fault = f"of shape {shape} and strides {strides} overlaps itself: save it with tensor.contiguous()"
        return StandIn("a tensor", fault=fault)
    dtype = storage.dtype
    return Tensor(storage.path, storage.offset + offset * dtype.itemsize, dtype, shape, strides)


def _tensor_of_bytes(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any):
    """The form for storages without a type: it comes with the tensor."""
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    name = called(dtype).removeprefix("torch.")
    if name not in DTYPES:
        return StandIn("a tensor", fault=f"is of dtype {name}, which is not read here")
    kind = DTYPES[name]
    numel = storage.numel * storage.dtype.itemsize // kind.itemsize
    return _tensor(dataclasses.replace(storage, dtype=kind, numel=numel), offset, shape, strides)


def _tensor_with_state(function: Any, cls: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes, rebuilt by one of the other functions."""
    return apply(TENSOR_CALLS, function, args)


TENSOR_CALLS: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.jit._pickle.build_boollist": list,
    "torch.jit._pickle.build_doublelist": list,
    "torch.jit._pickle.build_intlist": list,
    "torch.jit._pickle.build_tensorlist": list,
    "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_state,
}
"""The functions that PyTorch's pickles may call, by name."""
