"""Flax's `.msgpack` files: a tree of arrays.

`flax.serialization` makes arrays of whatever type a file names, of pointers too, which NumPy then follows; here the
types are those of `DTYPES` alone.
"""

import mmap
from typing import Any

import msgpack
import numpy as np

from dalle_jax.errors import UserError
from dalle_jax.weights.tensors import DTYPES, Held, Tensor, Unread, whole

_ARRAY = 1
"""Flax's code for an array: shape, name of its type, and bytes, packed by themselves."""

_CHUNKED = "__msgpack_chunked_array__"


def is_msgpack(path: str) -> bool:
    """Whether a file begins as a map does whose first key is a string."""
    with open(path, "rb") as file:
        head = file.read(6)
    length = {0xDE: 3, 0xDF: 5}.get(head[0], 1) if head else 0  # of what tells the number of keys
    if len(head) <= length or not (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return False
    return 0xA0 <= head[length] <= 0xBF or head[length] in (0xD9, 0xDA)


def read_msgpack(path: str) -> dict[str, Tensor]:
    """The arrays of a tree by their paths, `a/b/c`; their numbers are in memory.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tree = msgpack.unpackb(content, ext_hook=_extension)
        return dict(_leaves(tree, path))
    except (ValueError, TypeError, MemoryError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is damaged, or no tree of arrays that Flax wrote: {reason}") from error


def _extension(code: int, data: bytes) -> np.ndarray | str:
    """An array, or why there is none."""
    if code != _ARRAY:
        return "is not an array"
    shape, name, numbers = msgpack.unpackb(data, raw=True)
    name = name.decode("ascii", "replace")
    if name not in DTYPES:
        return f"is of type {name[:100]}, which is not read here"
    return np.frombuffer(numbers, DTYPES[name]).reshape(whole(shape))


def _leaves(tree: Any, path: str) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    waiting = [("", tree)]
    while waiting:
        prefix, current = waiting.pop()
        if not isinstance(current, dict):
            name = prefix.removesuffix("/")
            array = isinstance(current, np.ndarray)
            why = current if isinstance(current, str) else "is not an array"
            found.append((name, Held.of(path, current) if array else Unread(f"{path}: '{name}' {why}")))
        elif _CHUNKED in current:
            name = prefix.removesuffix("/")
            found.append((name, Unread(f"{path}: '{name}' is of over 1 GiB and in parts, which are not read here")))
        else:
            waiting += [(f"{prefix}{key}/", item) for key, item in current.items()]
    return found
