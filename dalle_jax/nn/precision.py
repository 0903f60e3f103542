"""Products that are as exact as the dtype of their factors, on every device.

Left alone, a TPU multiplies float32 as bfloat16 and a recent GPU as TF32. Where float32 is asked for here (in logits,
losses, and models whose `dtype` says so) it is meant; what may be coarser says bfloat16. Of bfloat16 factors the
products of the backward pass, whose gradients are float32 before they are rounded, stay coarse too.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Factor = Array | np.ndarray


def precision_of(*factors: Factor) -> jax.lax.Precision:
    """The precision of a product of arrays, and of its gradient's products."""
    wide = jnp.result_type(*factors) == jnp.float32
    return jax.lax.Precision.HIGHEST if wide else jax.lax.Precision.DEFAULT


def matmul(a: Factor, b: Factor) -> Array:
    """`a @ b`."""
    return jnp.matmul(a, b, precision=precision_of(a, b))


def einsum(subscripts: str, *factors: Factor, **options: Any) -> Array:
    """`jnp.einsum`."""
    return jnp.einsum(subscripts, *factors, precision=precision_of(*factors), **options)


def add_bias(x: Array, bias: Factor) -> Array:
    """`x + bias` in the dtype of `x`, added in float32.

    The gradient of a bias is a sum over all rows and positions. It has the dtype of the addition, and a sum in bfloat16
    stands still after a few hundred terms.
    """
    return (x.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)
