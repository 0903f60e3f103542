"""Layers that every model here is made of: activations, dense layers, norms."""

import enum
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dalle_jax.nn.precision import add_bias, matmul


class Activation(enum.Enum):
    """Non-linearity of the MLP."""

    GELU = "gelu"  # exact
    GELU_TANH = "gelu_tanh"  # tanh approximation (GPT-2, SigLIP)
    QUICK_GELU = "quick_gelu"  # x * sigmoid(1.702 x) (OpenAI's CLIP)
    RELU = "relu"

    def __call__(self, x: Array) -> Array:
        if self is Activation.GELU:
            return nn.gelu(x, approximate=False)
        if self is Activation.GELU_TANH:
            return nn.gelu(x, approximate=True)
        if self is Activation.QUICK_GELU:
            return x * jax.nn.sigmoid(1.702 * x)
        return nn.relu(x)


def check_dtype(dtype: str) -> None:
    """Raises: ValueError: matrix products are in `float32` or `bfloat16`."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be 'float32' or 'bfloat16', not '{dtype}'")


def constrain_activations(x: Array) -> Array:
    """Keeps the rows of `[B, ...]` over the mesh axes that the sharding rules give to `stream`: those of the batch."""
    return nn.with_logical_constraint(x, ("stream",) + (None,) * (x.ndim - 1))


class Dense(nn.Module):
    """`x @ kernel + bias` with logical axes on both; parameters float32, product in `dtype`."""

    features: int
    axes: tuple[str | None, str | None]
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        x = x.astype(self.dtype)
        kernel_init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = matmul(x, kernel.astype(self.dtype))
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(self.bias_init, self.axes[1:])
            y = add_bias(y, self.param("bias", bias_init, (self.features,), jnp.float32))
        return y


def layer_norm(epsilon: float, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm computed in float32, its gain and bias replicated over the mesh."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, name=name)
