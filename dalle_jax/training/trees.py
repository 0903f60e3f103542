"""Trees of arrays by name: the `a/b/c` paths that messages, decay masks and checkpoints speak of."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def path_name(path: tuple[Any, ...]) -> str:
    """Turns a key path of `jax.tree_util` into `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """The leaves of a tree by path, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def is_box(value: Any) -> bool:
    """Whether a value is an array in the box that carries its logical axes."""
    return isinstance(value, nn.meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """The tree with its arrays out of their boxes, and no sharding constraint put on them."""
    return jax.tree.map(lambda x: x.unbox(apply_constraint=False) if is_box(x) else x, tree, is_leaf=is_box)
