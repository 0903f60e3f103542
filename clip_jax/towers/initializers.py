"""How CLIP's and SigLIP's releases initialise their weights (where the papers are silent, the published code).

CLIP's text tower has scaled normals of its own; its image tower keeps PyTorch's defaults, spelt out here. SigLIP's
towers have Flax's: LeCun's normal for patches and text head, normals of width^-1/2 for words and positions.
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


def siglip_blocks(config: TransformerConfig) -> BlockInit:
    """Blocks of both towers of SigLIP: Xavier-uniform everywhere, each of q, k and v by itself, as big_vision has it.

    transformers differs in the pooling alone, where it takes the three together.
    """
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    attention, mlp = uniform((6 / (width + inner)) ** 0.5), uniform((6 / (width + config.mlp_dim)) ** 0.5)
    bias = normal(1e-6)
    return BlockInit(qkv=attention, out=attention, mlp_in=mlp, mlp_out=mlp, mlp_in_bias=bias, mlp_out_bias=bias)


def siglip_probe(key, shape, dtype=jnp.float32):
    """The pooling's query: Xavier-uniform of a matrix of one row (transformers': of width rows)."""
    return uniform((6 / (1 + shape[0])) ** 0.5)(key, shape, dtype)
