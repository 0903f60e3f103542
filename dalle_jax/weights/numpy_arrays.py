"""NumPy's arrays as pickles describe them, for checkpoints that hold those in place of tensors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dalle_jax.weights.stand_ins import StandIn
from dalle_jax.weights.tensors import DTYPES, whole

_OF_STATE = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_OF_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")

_KINDS: Mapping[str, np.dtype] = {f"{dtype.kind}{dtype.itemsize}": dtype for dtype in DTYPES.values()}
"""By NumPy's short name; all but bfloat16, which has none."""


def array_of(stand_in: StandIn) -> np.ndarray | None:
    """The array that a stand-in stands for; None: it is none of numbers, or not as NumPy writes it.

    Nothing is called but `numpy.frombuffer`, on bytes of the file and with one of the types of `DTYPES`.
    """
    try:
        if stand_in.of in _OF_STATE:
            _, shape, dtype, fortran, data = stand_in.state
        elif stand_in.of in _OF_BUFFER:
            data, dtype, shape, order = stand_in.args
            fortran = order == "F"
        else:
            return None
        kind, shape, data = _dtype(dtype), whole(shape), _bytes(data)
    except (TypeError, ValueError):
        return None
    if kind is None or data is None or math.prod(shape) * kind.itemsize != len(data):
        return None
    return np.frombuffer(data, kind).reshape(shape, order="F" if fortran is True else "C")


def _dtype(value: Any) -> np.dtype | None:
    """Of `numpy.dtype("f4", ...)` with its state `(3, "<", ...)`, whose second value is the order of bytes."""
    if not isinstance(value, StandIn) or value.of != "numpy.dtype" or not isinstance(value.args[0], str):
        return None
    order = value.state[1] if isinstance(value.state, tuple) else "|"
    return _KINDS.get(value.args[0]) if order in ("<", "|", "=") else None


def _bytes(value: Any) -> bytes | None:
    """Bytes, or the text that stands for them in older pickles."""
    if isinstance(value, StandIn) and value.of == "_codecs.encode" and value.args[1:] == ("latin1",):
        value = value.args[0]
        return value.encode("latin1") if isinstance(value, str) else None
    return bytes(value) if isinstance(value, bytes | bytearray) else None
