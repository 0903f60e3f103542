"""The form of parameters from which single devices decode fastest, and its products.

Decoding reads all weights for every token and multiplies few rows by them. The layers of the scanned group would be cut
out of their stacked arrays at every step, and a CPU reads a kernel at the rate of its memory only as the left factor.
"""

import enum
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dalle_jax.nn.layers import Dense
from dalle_jax.nn.precision import add_bias, precision_of
from dalle_jax.nn.transformer import Attention, GroupPlan


class DecodingLayout(enum.Enum):
    """How the parameters of a stack lie while it decodes."""

    STACKED = "stacked"  # as they are trained: equal layers in one array, kernels [inputs, outputs]
    ROWS = "rows"  # on one device: every layer by itself, kernels [outputs, inputs]

    @classmethod
    def fastest(cls, mesh: Mesh) -> "DecodingLayout":
        """Rows on one CPU device, where they were measured to be faster; stacked elsewhere."""
        return cls.ROWS if mesh.devices.size == 1 and mesh.devices.flat[0].platform == "cpu" else cls.STACKED

    @classmethod
    def of(cls, stack: Mapping[str, Any]) -> "DecodingLayout":
        """That of the parameters of a `Transformer`."""
        return cls.STACKED if "group" in stack else cls.ROWS


def layers_as_rows(params: Any, kinds: Sequence[Hashable]) -> Any:
    """The parameters of a `Transformer` in the layout `ROWS`.

    Args:
      params: of a stack, unboxed, in the layout `STACKED`.
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


def rows_product(rows: Float[Array, "o i"], x: Float[Array, "... i"]) -> Float[Array, "... o"]:
    """`x @ rows.T`, the form of a product in which a CPU reads a kernel at the rate of its memory.

    Where `x` has few rows, XLA's product with the kernel on the right and inputs first takes two to three times as
    long. The barrier keeps it from being turned into that form.
    """
    contracting = (((1,), (1,)), ((), ()))
    y = jax.lax.dot_general(rows, x.reshape(-1, x.shape[-1]), contracting, precision_of(rows, x))
    return jax.lax.optimization_barrier(y).T.reshape(*x.shape[:-1], -1)


def multiply_rows(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
) -> Any:
    """For `nn.intercept_methods`: products of `Dense` and `Attention` with `kernel_rows`, where they have them."""
    module, method = context.module, context.method_name
    if isinstance(module, Dense) and method == "__call__" and module.has_variable("params", "kernel_rows"):
        return _dense(module, *args, **kwargs)
    if isinstance(module, Attention) and method == "project_qkv" and module.has_variable("params", "qkv_kernel_rows"):
        return _qkv(module, *args, **kwargs)
    return call(*args, **kwargs)


def _dense(module: Dense, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
    x = x.astype(module.dtype)
    y = rows_product(module.get_variable("params", "kernel_rows").astype(module.dtype), x)
    return add_bias(y, module.get_variable("params", "bias")) if module.use_bias else y


def _qkv(module: Attention, x: Float[Array, "B T D"], width: int) -> Float[Array, "B T 3 W"]:
    qkv = rows_product(module.get_variable("params", "qkv_kernel_rows").astype(x.dtype), x)
    return add_bias(qkv.reshape(*x.shape[:2], 3, width), module.get_variable("params", "qkv_bias"))
