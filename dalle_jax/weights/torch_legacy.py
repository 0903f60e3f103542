"""The layout of `torch.save` before PyTorch 1.6.

Pickles of a magic number, a version, the machine, the value, and the keys of its storages; then each storage as its
number of elements and its bytes.
"""

import dataclasses
import os
import struct
from io import BufferedReader
from typing import Any

from dalle_jax.errors import UserError
from dalle_jax.weights.foreign import foreign
from dalle_jax.weights.pickles import read_pickle
from dalle_jax.weights.tensors import whole
from dalle_jax.weights.torch_tensors import TENSOR_CALLS, Storage, StorageName

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


def read_legacy(path: str) -> Any:
    """What `torch.save` put into a file, or what a plain pickle holds: values, `Tensor`s, and stand-ins for the rest.

    Raises:
      UserError: the file is of another kind, damaged, or lies about its sizes.
    """
    with open(path, "rb") as file:
        first = _first(file, path)
        if first != _MAGIC:
            return first
        version, machine = read_pickle(file, path), read_pickle(file, path)
        if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise UserError(f"{path} is of a version of PyTorch, or of a machine, that is not read here")
        start = file.tell()
        # The value comes before the numbers that it refers to: read once for their sizes, and once with their places.
        storages = _Storages(path)
        read_pickle(file, path, TENSOR_CALLS, storages.find)
        storages.locate(file)
        file.seek(start)
        return read_pickle(file, path, TENSOR_CALLS, storages.find)


def _first(file: BufferedReader, path: str) -> Any:
    """The first pickle of a file: PyTorch's magic number, or a checkpoint that someone pickled by himself."""
    try:
        return read_pickle(file, path)
    except UserError as error:
        kind = foreign(path)
        known = "PyTorch, TorchScript, safetensors, NumPy's .npz, Flax's .msgpack"
        raise UserError(f"{path} is not a file of weights that is known here ({known}): it {kind}") from error


class _Storages:
    """The storages of a file, as its pickle speaks of them, and where they are."""

    def __init__(self, path: str):
        self.path = path
        self.names: dict[str, StorageName] = {}
        self.places: dict[str, int] = {}

    def find(self, identity: Any) -> Any:
        """The value of a persistent id; without a place before `locate`."""
        if identity[0] == "module":  # a class whose source code is kept beside it
            return identity[1]
        name = StorageName.of(identity)
        if self.names.setdefault(name.key, name) != name:
            raise UserError(f"{self.path} is refused: the storage '{name.key}' is given two sizes")
        storage = Storage(self.path, self.places.get(name.key, 0), name.dtype, name.numel, name.fault)
        view = identity[5] if len(identity) > 5 else None
        if view is None:
            return storage
        offset, numel = whole(view[1:])
        if offset + numel > storage.numel:
            raise UserError(f"{self.path} is refused: a part of the storage '{name.key}' reaches over its end")
        return dataclasses.replace(storage, offset=storage.offset + offset * name.dtype.itemsize, numel=numel)

    def locate(self, file: BufferedReader) -> None:
        """Reads the list of keys, and steps over the numbers."""
        keys, length = read_pickle(file, self.path), os.fstat(file.fileno()).st_size
        strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not strings or sorted(keys) != sorted(self.names):
            raise UserError(f"{self.path} is refused: its list of storages is not that of its tensors")
        for key in keys:
            name, header = self.names[key], file.read(8)
            self.places[key] = file.tell()
            if self.places[key] + name.nbytes > length or len(header) < 8:
                raise UserError(f"{self.path} is truncated: the storage '{key}' ends after the file")
            if struct.unpack("<q", header)[0] != name.numel:
                raise UserError(f"{self.path} is refused: the storage '{key}' has another size than its tensors say")
            file.seek(name.nbytes, 1)
