"""Which of our parameters is made of which tensors: one table for both directions.

Ours may differ from a file's in three ways: axes are turned (linear layers and convolutions have their output last),
tensors are reshaped (q, k and v as an axis of their own), and several of theirs lie in one of ours (layers in a stack).
"""

import dataclasses
import fnmatch
import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.errors import UserError, closest
from dalle_jax.weights.tensors import Tensor, Unread

_log = logging.getLogger(__name__)

Index = tuple[slice, ...]
"""Part of an array: a slice with start and stop for each axis."""

Part = Callable[[Index], np.ndarray]
"""Gives a part of a parameter."""

Place = tuple[int | slice | None, ...]
"""Of a tensor in a parameter, by its first axes: at one position (the tensor lacks that axis), at several, with start
and stop, or, with None and where nothing is said, all along."""

HOST_BYTES = 1 << 26
"""The most of a parameter that the host holds at once, where a row is not more."""


PARAM_DTYPES = ("float32", "bfloat16", "float16")
"""What parameters may be read as."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A tensor of a file, and the part of one of our parameters that it is."""

    name: str
    shape: tuple[int, ...]
    """In the file."""
    axes: tuple[int, ...] | None = None
    """Its axes in our order, None: as they are. What they then span is reshaped, where ours has other axes."""
    at: Place = ()
    """Where it lies along our first axes."""

    @property
    def turned(self) -> tuple[int, ...]:
        """Its shape with the axes in our order."""
        return tuple(self.shape[axis] for axis in self._order)

    def to_ours(self, tensor: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """What a tensor of the file is in ours, of which it is a part or all, with all of our axes."""
        sizes = tuple(span.stop - span.start for span in self._spans(shape))
        return tensor.reshape(self.shape).transpose(self._order).reshape(sizes)

    def to_theirs(self, param: np.ndarray) -> np.ndarray:
        """The tensor for a file, contiguous."""
        part = param[tuple(slice(None) if place is None else place for place in self.at)]
        back = tuple(np.argsort(self._order))
        return np.ascontiguousarray(part.reshape(self.turned).transpose(back)).reshape(self.shape)

    def fill(self, out: np.ndarray, index: Index, tensor: Tensor, shape: Sequence[int]) -> None:
        """Writes what lies inside `index` of our parameter of `shape` into `out`, which is that part of it."""
        spans = self._spans(shape)
        first = [max(wanted.start, span.start) for wanted, span in zip(index, spans, strict=True)]
        last = [min(wanted.stop, span.stop) for wanted, span in zip(index, spans, strict=True)]
        if all(start < stop for start, stop in zip(first, last, strict=True)):
            out[_within(index, first, last)] = self.to_ours(tensor.read(), shape)[_within(spans, first, last)]

    @property
    def _order(self) -> tuple[int, ...]:
        return tuple(range(len(self.shape))) if self.axes is None else self.axes

    def _spans(self, shape: Sequence[int]) -> Index:
        """What it covers of our parameter of `shape`."""
        places = (*self.at, *[None] * (len(shape) - len(self.at)))
        return tuple(
            slice(0, size) if place is None else slice(place, place + 1) if isinstance(place, int) else place
            for place, size in zip(places, shape, strict=True)
        )


def _within(index: Sequence[slice], first: Sequence[int], last: Sequence[int]) -> Index:
    """The part from `first` to `last`, counted from where `index` begins."""
    return tuple(slice(i - span.start, j - span.start) for span, i, j in zip(index, first, last, strict=True))


class Names(dict[str, list[Piece]]):
    """The pieces of each of our parameters, by its path `a/b/c`; filled by the methods below.

    In each, `ours` is the path of a module or parameter and `theirs` its name in the file; `at` is as in `Piece`.
    """

    def array(
        self,
        ours: str,
        theirs: str,
        shape: Sequence[int],
        axes: tuple[int, ...] | None = None,
        at: Place = (),
    ) -> None:
        """One tensor."""
        self.setdefault(ours, []).append(Piece(theirs, tuple(shape), axes, at))

    def linear(self, ours: str, theirs: str, sizes: tuple[int, int], at: Place = ()) -> None:
        """A dense layer of `(in, out)` features, with a bias."""
        features_in, features_out = sizes
        self.array(f"{ours}/kernel", f"{theirs}.weight", (features_out, features_in), (1, 0), at)
        self.array(f"{ours}/bias", f"{theirs}.bias", (features_out,), at=at)

    def norm(self, ours: str, theirs: str, width: int, at: Place = ()) -> None:
        """Gain and bias of a normalisation."""
        self.array(f"{ours}/scale", f"{theirs}.weight", (width,), at=at)
        self.array(f"{ours}/bias", f"{theirs}.bias", (width,), at=at)

    @property
    def pieces(self) -> list[Piece]:
        return [piece for pieces in self.values() for piece in pieces]


def conv_names(shapes: Any, rename: Callable[[str], str]) -> Names:
    """Names of a model of convolutions whose modules are called nearly as in the file: read off its own parameters.

    Args:
      shapes: our tree of parameters, abstract; kernels are (row, column, in, out).
      rename: the file's name of a path `a/b/c` of ours; there kernels are (out, in, row, column).
    """
    names = Names()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        ours = jax.tree_util.keystr(path, simple=True, separator="/")
        if len(leaf.shape) == 4:
            rows, columns, features_in, features_out = leaf.shape
            names.array(ours, rename(ours), (features_out, features_in, rows, columns), (2, 3, 1, 0))
        else:
            names.array(ours, rename(ours), leaf.shape)
    return names


def check_tensors(names: Names, tensors: Mapping[str, Tensor], where: str, ignored: Iterable[str] = ()) -> None:
    """Compares the tensors of a file with those that a model needs.

    Args:
      names: of the model.
      tensors: of the file.
      where: name of the file, for the message.
      ignored: patterns (`*.position_ids`) of tensors that are not parameters.

    Raises:
      UserError: one line with the names of all that are missing, unknown, of another shape, or of integers (ten of
        each); or why one that is needed cannot be read.
    """
    wanted = {piece.name: piece.shape for piece in names.pieces}
    missing = [name for name in wanted if name not in tensors]
    unknown = [
        name
        for name in tensors
        if name not in wanted
        and not isinstance(tensors[name], Unread)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
    ]
    wrong = [
        f"{name} is {tensors[name].shape} and should be {shape}"
        for name, shape in wanted.items()
        if name in tensors and not _same_shape(tensors[name].shape, shape)
    ]
    # Quantized weights, whose scales are elsewhere: as numbers they mean another model.
    integers = [name for name in wanted if name in tensors and tensors[name].dtype.kind in "iub"]
    faults = [
        f"{kind}: {', '.join(found[:10])}{f' and {len(found) - 10} more' if len(found) > 10 else ''}"
        for kind, found in (
            ("missing", missing),
            ("unknown", unknown),
            ("of a wrong shape", wrong),
            ("of integers", integers),
        )
        if found
    ]
    if faults:
        raise UserError(f"{where} does not fit the model; {'; '.join(faults)}")


def _same_shape(found: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether shapes agree; a single number may be written as an array of one or as none."""
    return tuple(found) == tuple(wanted) or (math.prod(found) == math.prod(wanted) == 1)


def read_params(
    names: Names,
    shapes: Any,
    tensors: Mapping[str, Tensor],
    *,
    dtype: str | None = "float32",
    shardings: Any = None,
) -> Any:
    """Makes our parameters from tensors that `check_tensors` has found fit.

    Args:
      names: of the model; must name every parameter.
      shapes: our tree of parameters, abstract.
      tensors: of the file.
      dtype: of the result, one of `PARAM_DTYPES`; None: as each is in the file.
      shardings: one `Sharding` for all, or a tree of them like `shapes`: each device's part is read and put there by
        itself, so that the host holds one part at a time. None: arrays on the host.

    Returns:
      The tree: `jax.Array`s with shardings, NumPy arrays without.

    Raises:
      UserError: there is no such dtype for parameters.
    """
    if dtype is not None and dtype not in PARAM_DTYPES:
        raise UserError(
            f"unknown param_dtype '{dtype}'{closest(dtype, PARAM_DTYPES)} (known: {', '.join(PARAM_DTYPES)})"
        )

    broken: set[str] = set()

    def make(path: tuple[Any, ...], leaf: Any, sharding: jax.sharding.Sharding | None = None) -> Any:
        ours = jax.tree_util.keystr(path, simple=True, separator="/")
        pieces = names[ours]
        kind = np.result_type(*(tensors[piece.name].dtype for piece in pieces)) if dtype is None else np.dtype(dtype)

        def part(index: Index) -> np.ndarray:
            out = np.empty([span.stop - span.start for span in index], kind)
            for piece in pieces:
                piece.fill(out, index, tensors[piece.name], leaf.shape)
            # Without an array of its own: the host holds little beside this part. Both extremes of NaN are NaN.
            if out.size and not (np.isfinite(out.min()) and np.isfinite(out.max())):
                broken.add(ours)
            return out

        if sharding is None:
            return part(_resolved((slice(None),) * len(leaf.shape), leaf.shape))
        return _on_devices(part, leaf.shape, kind, sharding)

    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    params = jax.tree_util.tree_map_with_path(make, shapes, *([] if shardings is None else [shardings]))
    if broken:
        _log.warning(
            "%d parameters hold NaN or infinite numbers, such as '%s': what is computed from them will too",
            *(len(broken), min(broken)),
        )
    return params


def _on_devices(part: Part, shape: Sequence[int], dtype: np.dtype, sharding: jax.sharding.Sharding) -> jax.Array:
    devices: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        spans = _resolved(index or (slice(None),) * len(shape), shape)
        devices.setdefault(tuple((span.start, span.stop) for span in spans), []).append(device)
    arrays = []
    for spans, holders in devices.items():
        arrays += _put(part, tuple(slice(start, stop) for start, stop in spans), dtype, holders)
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, arrays)


def _put(part: Part, index: Index, dtype: np.dtype, devices: Sequence[jax.Device]) -> list[jax.Array]:
    """One part of a parameter on the devices that hold it; where it is large, rows at a time, written in place."""
    sizes = [span.stop - span.start for span in index]
    row_bytes = math.prod(sizes[1:]) * dtype.itemsize
    if not sizes or sizes[0] * row_bytes <= HOST_BYTES:
        numbers = part(index)
        whole = [jax.device_put(numbers, device) for device in devices]
        jax.block_until_ready(whole)  # what is not yet on its device would join the next part on the host
        return whole
    arrays: list[jax.Array] = [jnp.zeros(sizes, dtype, device=device) for device in devices]
    count = max(HOST_BYTES // row_bytes, 1)
    for start in range(0, sizes[0], count):
        first = index[0].start + start
        rows = part((slice(first, min(first + count, index[0].stop)), *index[1:]))
        arrays = [
            _write_rows(array, jax.device_put(rows, device), jnp.int32(start))
            for array, device in zip(arrays, devices, strict=True)
        ]
        jax.block_until_ready(arrays)
    return arrays


@functools.partial(jax.jit, donate_argnums=0)
def _write_rows(array: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, rows, start, axis=0)


def _resolved(index: Sequence[slice], shape: Sequence[int]) -> Index:
    spans = [slice(*span.indices(size)[:2]) for span, size in zip(index, shape, strict=True)]
    return tuple(spans)


def write_tensors(names: Names, params: Any) -> dict[str, np.ndarray]:
    """The tensors for a file, by its names, from our parameters."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert leaves.keys() == names.keys(), leaves.keys() ^ names.keys()
    return {piece.name: piece.to_theirs(np.asarray(leaves[ours])) for ours, pieces in names.items() for piece in pieces}
