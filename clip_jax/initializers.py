"""How CLIP's release initialises its weights (Radford et al. 2021; where the paper is silent, the published code).

The text tower has scaled normals of its own; the image tower keeps PyTorch's defaults, spelt out here.
"""

import jax
import jax.numpy as jnp
from flax.linen.initializers import Initializer, normal

from dalle_jax.nn.transformer import BlockInit, TransformerConfig


def uniform(bound: float) -> Initializer:
    """Uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_linear(fan_in: int) -> Initializer:
    """PyTorch's default for the weights and the biases of linear and convolutional layers."""
    return uniform(fan_in**-0.5)


def text_blocks(config: TransformerConfig) -> BlockInit:
    """Blocks of the text tower: less into the residual stream the deeper the stack."""
    width, mlp_dim = config.embed_dim, config.mlp_dim
    residual = normal(width**-0.5 * (2 * config.num_layers) ** -0.5)
    return BlockInit(
        qkv=normal(width**-0.5),
        out=residual,
        mlp_in=normal((2 * width) ** -0.5),
        mlp_out=residual,
        mlp_in_bias=torch_linear(width),
        mlp_out_bias=torch_linear(mlp_dim),
    )


def vision_blocks(config: TransformerConfig) -> BlockInit:
    """Blocks of the ViT: Xavier-uniform over q, k and v together, PyTorch's linear default elsewhere."""
    width, mlp_dim = config.embed_dim, config.mlp_dim
    inner = config.num_heads * config.head_dim
    return BlockInit(
        qkv=uniform((6 / (width + 3 * inner)) ** 0.5),
        out=torch_linear(inner),
        mlp_in=torch_linear(width),
        mlp_out=torch_linear(mlp_dim),
        mlp_in_bias=torch_linear(width),
        mlp_out_bias=torch_linear(mlp_dim),
    )
