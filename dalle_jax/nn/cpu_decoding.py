"""The parameters of a stack in the form that a CPU draws from fastest."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax

from dalle_jax.nn.transformer import GroupPlan


def layers_apart(params: Any, kinds: Sequence[Hashable]) -> Any:
    """The parameters of a `Transformer` in the form that a CPU draws from fastest; the stack takes either.

    Every layer by itself, so that nothing is cut out of the stacked ones at every step, and kernels [outputs, inputs],
    for `rows_product`.

    Args:
      params: of a stack, unboxed.
      kinds: of its layers.

    Returns:
      `{"tail": {"layer_0": ..., ...}}`.
    """
    plan = GroupPlan.of(kinds)
    layers = [
        jax.tree.map(lambda x, i=i: x[i], params["group"][f"layer_{j}"])
        for i in range(plan.repeats)
        for j in range(len(plan.group))
    ]
    layers += [params["tail"][f"layer_{j}"] for j in range(len(plan.tail))]
    return {"tail": {f"layer_{i}": kernels_as_rows(layer) for i, layer in enumerate(layers)}}


def kernels_as_rows(params: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of parameters with every `kernel` [i, o] as `kernel_rows` [o, i] (`qkv_kernel` [i, 3, o]: [3 * o, i])."""
    rows = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            rows[name] = kernels_as_rows(value)
        elif name.endswith("kernel"):
            rows[f"{name}_rows"] = value.reshape(value.shape[0], -1).T
        else:
            rows[name] = value
    return rows
