"""Checksums of arrays, which a checkpoint keeps beside them: no file format in it notices every flipped bit by itself.

Noise, as weights are, does not compress, and is stored as it is: a bit that flips in it gives another number and no
error. The sum of an array's words, each multiplied by an odd number that its place decides, modulo 2^32, changes with
every single bit, and with words that change places. It does not depend on how the array is spread over a mesh, and is
computed where the array lies: one pass over the memory, and no copy.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.training.trees import named_leaves

_FACTOR = 2_654_435_761  # the golden ratio's: neighbours get weights that are far apart
_AT_ONCE = 1 << 22  # words, on the host
_UNSIGNED = {1: "uint8", 2: "uint16", 4: "uint32"}


def checksums(trees: Mapping[str, Any]) -> dict[str, int]:
    """The checksum of every array, by `tree/a/b/c`. Where processes share arrays, all call it, with the same trees."""
    leaves = {f"{tree}/{name}": leaf for tree in trees for name, leaf in named_leaves(trees[tree]).items()}
    # One after the other: on a CPU with several devices, many small programs that sum over them at once may come to a
    # standstill, each with a thread that another one waits for.
    return {
        name: int(_on_device(x)) if isinstance(x, jax.Array) else _on_host(np.asarray(x)) for name, x in leaves.items()
    }


def fingerprint(tree: Any) -> str:
    """12 hexadecimal digits of arrays and their names, on any mesh the same; as `checksums` called by all processes."""
    return hashlib.sha256(json.dumps(checksums({"": tree}), sort_keys=True).encode()).hexdigest()[:12]


def changed(trees: Mapping[str, Any], saved: Mapping[str, int]) -> list[str]:
    """The arrays that are not what was saved; those of which no checksum was saved are taken as they are."""
    return [name for name, value in checksums(trees).items() if saved.get(name, value) != value]


@jax.jit
def _on_device(x: jax.Array) -> jax.Array:
    unsigned = _UNSIGNED[x.dtype.itemsize]
    words = x.astype(unsigned) if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    # Of each dimension by itself: an array that is reshaped would be gathered from its devices.
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, stride in enumerate(_strides(x.shape)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
    return jnp.sum(words.astype(jnp.uint32) * (place * jnp.uint32(_FACTOR) | jnp.uint32(1)), dtype=jnp.uint32)


def _on_host(x: np.ndarray) -> int:
    words, total = np.ascontiguousarray(x).reshape(-1).view(_UNSIGNED[x.dtype.itemsize]), 0
    for start in range(0, words.size, _AT_ONCE):
        part = words[start : start + _AT_ONCE].astype(np.uint32)
        place = np.arange(len(part), dtype=np.uint32) + np.uint32(start % 2**32)
        total += int((part * (place * np.uint32(_FACTOR) | np.uint32(1))).sum(dtype=np.uint32))
    return total % 2**32


def _strides(shape: Sequence[int]) -> list[int]:
    """In words, of an array that lies in C's order."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return strides[::-1] if shape else []
