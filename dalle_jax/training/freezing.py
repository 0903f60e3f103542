"""Which parameters a run trains: all, or what patterns leave of them (locked towers, the last blocks of a stack).

The trained part is a tree of its own, with what is frozen left out of it. Gradients are taken of it alone and the
optimizer sees it alone, so that frozen parameters cost neither backward pass nor optimizer sums, and do not count in
the gradient's norm.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dalle_jax.errors import UserError
from dalle_jax.training.config import OptimizerConfig
from dalle_jax.training.task import Params
from dalle_jax.training.trees import is_box, named_leaves


@dataclasses.dataclass(frozen=True)
class Freezing:
    """The rule of `OptimizerConfig.freeze` and `freeze_first`.

    Parameters are nested dicts of arrays or boxes. One of which the first n entries are frozen is in the trained part
    without them.
    """

    patterns: tuple[str, ...] = ()
    first: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, config: OptimizerConfig) -> "Freezing":
        """Raises: UserError: a pattern is not a regular expression, or a number of entries is not positive."""
        check_patterns("freeze", config.freeze)
        check_patterns("freeze_first", tuple(pattern for pattern, _ in config.freeze_first))
        for pattern, count in config.freeze_first:
            if count < 1:
                raise UserError(f"optimizer.freeze_first: '{pattern}' freezes {count} entries; freeze 1 or more")
        return cls(config.freeze, config.freeze_first)

    def check(self, params: Params) -> None:
        """Compares the patterns with all parameters.

        Raises:
          UserError: a pattern finds no parameter, or one that has not so many entries; or nothing is left to train.
        """
        leaves = named_leaves(params, is_leaf=is_box)
        check_found("freeze", self.patterns, leaves)
        check_found("freeze_first", tuple(pattern for pattern, _ in self.first), leaves)
        starts = {name: self._start(name, leaf) for name, leaf in leaves.items()}
        if all(start is None for start in starts.values()):
            raise UserError("optimizer.freeze and freeze_first leave nothing to train: every parameter is frozen")

    def trained(self, params: Params) -> Params:
        """The part of all parameters that is trained; the same tree where nothing is frozen."""
        if not self.patterns and not self.first:
            return params

        def part(node: Any, name: str) -> Any:
            if isinstance(node, Mapping):
                parts = {key: part(child, f"{name}/{key}" if name else key) for key, child in node.items()}
                return {key: kept for key, kept in parts.items() if kept is not None} or None
            start = self._start(name, node)
            if not start:
                return None if start is None else node
            return jax.tree.map(lambda x: x[start:], node)  # through the box

        return part(params, "")

    def whole(self, params: Params, trained: Params) -> Params:
        """All parameters, with `trained` in the place of what it was taken from. Gradients go to `trained` alone."""
        if not self.patterns and not self.first:
            return trained
        return _join(params, trained)

    def _start(self, name: str, leaf: Any) -> int | None:
        """The first entry of a parameter that is trained; None where there is none."""
        if any(re.search(pattern, name) for pattern in self.patterns):
            return None
        counts = [(count, pattern) for pattern, count in self.first if re.search(pattern, name)]
        if not counts:
            return 0
        count, pattern = max(counts)
        shape = (leaf.unbox(apply_constraint=False) if is_box(leaf) else leaf).shape
        if not shape or count > shape[0]:
            raise UserError(
                f"optimizer.freeze_first: '{pattern}' freezes the first {count} entries of {name}, and its shape is "
                f"{tuple(shape)}: freeze fewer, or match only parameters of the stack of blocks"
            )
        return count if count < shape[0] else None


def check_patterns(field: str, patterns: tuple[str, ...]) -> None:
    """Raises: UserError: one is not a regular expression; the message names it and the field of the config."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"optimizer.{field}: '{pattern}' is not a regular expression ({error})") from error


def check_found(field: str, patterns: tuple[str, ...], leaves: Mapping[str, Any]) -> None:
    """Raises: UserError: a pattern finds none of the parameters."""
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in leaves):
            known = ", ".join(sorted({name.split("/")[0] for name in leaves}))
            raise UserError(
                f"optimizer.{field}: '{pattern}' finds no parameter (they are called a/b/c and begin with: {known})"
            )


def _join(node: Any, trained: Any) -> Any:
    if trained is None:
        return node
    if isinstance(node, Mapping):
        return {key: _join(child, trained.get(key)) for key, child in node.items()}
    frozen = node.shape[0] - trained.shape[0] if node.ndim else 0
    return jnp.concatenate([node[:frozen], trained]) if frozen else trained
