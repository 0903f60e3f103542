"""Where arrays live: one table from the logical axes that modules name to the axes of the mesh."""

import contextlib
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dalle_jax.errors import UserError, closest
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import AXES
from dalle_jax.training.trees import is_box, named_leaves, path_name, unbox

MeshAxes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axes over which each logical axis is split; `()` replicates.

    A weight is split over `tensor` along one dimension and over `fsdp` along the other; the compiler gathers the
    second for use, so that `fsdp` shards state and `tensor` shards work. `stream` is of the rows of activations between
    layers; None: as `batch`.
    """

    batch: MeshAxes = ("data", "fsdp")
    stream: MeshAxes | None = None
    embed: MeshAxes = ("fsdp",)
    mlp: MeshAxes = ("tensor",)
    heads: MeshAxes = ("tensor",)
    vocab: MeshAxes = ("tensor",)
    layers: MeshAxes = ()
    conv_in: MeshAxes = ()
    conv_out: MeshAxes = ("fsdp",)

    def __post_init__(self):
        if self.stream is None:
            object.__setattr__(self, "stream", self.batch)
        for field in dataclasses.fields(self):
            for axis in getattr(self, field.name):
                if axis not in AXES:
                    near = closest(axis, AXES)
                    raise UserError(f"sharding rule '{field.name}': unknown mesh axis '{axis}'{near} (known: {AXES})")

    @classmethod
    def of(cls, config: MeshConfig) -> "ShardingRules":
        """The defaults with the overrides of `config.rules`."""
        names = [field.name for field in dataclasses.fields(cls)]
        for logical, _ in config.rules:
            if logical not in names:
                near = closest(logical, names)
                raise UserError(
                    f"config.mesh.rules: unknown logical axis '{logical}'{near} (known: {', '.join(names)})"
                )
        return cls(**{logical: tuple(axes) for logical, axes in config.rules})

    def spec(self, logical_axes: tuple[str | None, ...], name: str = "an array") -> PartitionSpec:
        """The mesh axes of an array's dimensions.

        Args:
          logical_axes: of each dimension; None replicates it.
          name: of the array, for messages.

        Raises:
          ValueError: a logical axis has no rule (a module's fault, not a person's).
          UserError: two dimensions would be split over one mesh axis.
        """
        taken: dict[str, str] = {}
        entries: list[MeshAxes | None] = []
        for logical in logical_axes:
            try:
                axes = self.mesh_axes(logical)
            except AttributeError:
                raise ValueError(f"{name}: no sharding rule for logical axis '{logical}' of {logical_axes}") from None
            for axis in axes:
                if axis in taken:
                    raise UserError(
                        f"{name} of logical axes {logical_axes}: '{taken[axis]}' -> {self.mesh_axes(taken[axis])} and "
                        f"'{logical}' -> {axes} share the mesh axis '{axis}'; change one of them in config.mesh.rules"
                    )
                taken[axis] = str(logical)
            entries.append(axes or None)
        return PartitionSpec(*entries)

    def mesh_axes(self, logical: str | None) -> MeshAxes:
        """The mesh axes of one logical axis."""
        return () if logical is None else getattr(self, logical)

    def context(self) -> contextlib.AbstractContextManager:
        """Makes the rules known to `nn.with_logical_constraint` inside modules."""
        table = dataclasses.asdict(self)
        return nn.logical_axis_rules([(logical, axes or None) for logical, axes in table.items()])


def param_shardings(boxed: Any, mesh: Mesh, rules: ShardingRules) -> Any:
    """Shardings of a tree of arrays.

    Args:
      boxed: abstract or real arrays, those with logical axes in their boxes; an array without a box is replicated.

    Returns:
      The tree without boxes, a `NamedSharding` for each array.

    Raises:
      UserError: a dimension does not divide by the mesh axes it is split over, or see `ShardingRules.spec`.
    """

    def sharding(path, leaf) -> NamedSharding:
        if not is_box(leaf):
            return NamedSharding(mesh, PartitionSpec())
        name, shape = path_name(path), leaf.unbox(apply_constraint=False).shape
        spec = rules.spec(leaf.names, name)
        for size, logical in zip(shape, leaf.names, strict=True):
            axes = rules.mesh_axes(logical)
            parts = math.prod(mesh.shape[axis] for axis in axes)
            if size % parts:
                raise UserError(
                    f"{name}: its dimension '{logical}' of {size} does not divide into {parts} parts "
                    f"({' x '.join(axes)}); change config.mesh or give '{logical}' other mesh axes in config.mesh.rules"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, boxed, is_leaf=is_box)


def shard_bytes(boxed: Any, mesh: Mesh, rules: ShardingRules) -> int:
    """What one device holds of a tree of arrays in boxes; raises as `param_shardings` does."""
    shardings = param_shardings(boxed, mesh, rules)
    sizes = jax.tree.map(
        lambda x, place: math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize, unbox(boxed), shardings
    )
    return sum(jax.tree.leaves(sizes))


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """Splits the first dimension of an array of any rank as the `batch` axis."""
    return NamedSharding(mesh, rules.spec(("batch",), "the batch"))


def put_keys(keys: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Typed keys, the same on every process, on the devices of all; `jax.device_put` refuses them."""
    data = jax.device_put(np.asarray(jax.random.key_data(keys)), sharding)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def check_batch(batch_size: int, micro_batches: int, mesh: Mesh, rules: ShardingRules) -> None:
    """Refuses a batch that cannot be cut into equal shares.

    Raises:
      UserError: `batch_size` is not a multiple of `micro_batches` times the devices that `batch` is split over.
    """
    parts = math.prod(mesh.shape[axis] for axis in rules.batch)
    if micro_batches < 1 or batch_size < 1 or batch_size % (parts * micro_batches):
        raise UserError(
            f"batch_size {batch_size} does not divide into {micro_batches} micro-batch(es) over {parts} devices "
            f"({' x '.join(rules.batch) or 'no mesh axis'}): make it a multiple of {max(micro_batches, 1) * parts}"
        )


def describe(boxed: Any, rules: ShardingRules) -> dict[str, tuple[tuple[int, ...], PartitionSpec]]:
    """Shape and spec of every parameter by name, for tables; needs no devices."""
    table = {}
    for name, leaf in named_leaves(boxed, is_leaf=is_box).items():
        names = leaf.names if is_box(leaf) else (None,) * leaf.ndim
        value = leaf.unbox(apply_constraint=False) if is_box(leaf) else leaf
        table[name] = (tuple(value.shape), rules.spec(names, name))
    return table
