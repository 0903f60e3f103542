"""SigLIP's towers (Zhai et al. 2023; the published models are of the big_vision code, which is followed here).

They differ from CLIP's where `clip_jax.towers.initializers` and the docstrings below say so; blocks and patches are
the same.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal, normal
from jaxtyping import Array, Float, Int

from clip_jax.config import TextConfig, VisionConfig
from clip_jax.towers import initializers
from clip_jax.towers.text import TokenEmbedding
from clip_jax.towers.vit import drop_patches, patches
from dalle_jax.nn.attention import dense_attention
from dalle_jax.nn.layers import Dense, layer_norm
from dalle_jax.nn.precision import add_bias, einsum, matmul
from dalle_jax.nn.transformer import BlockInit, Mlp, Transformer, TransformerConfig, same_everywhere, uniform_kinds


class SiglipVision(nn.Module):
    """Patches with a bias, learned positions, no class token and no norm before the blocks; pooled by attention."""

    config: VisionConfig

    @nn.compact
    def __call__(self, images: Float[Array, "B height width 3"], *, train: bool = False) -> Float[Array, "B D"]:
        """Args: images: normalised pixels, `image_size` a side; train: drop patches and activations (stream `dropout`).

        Returns: features, which are the embedding, float32.
        """
        config, sizes = self.config, self.config.vit
        dtype = jnp.dtype(sizes.dtype)
        embed = Dense(sizes.embed_dim, (None, "embed"), lecun_normal(), dtype=dtype, name="patch_embedding")
        x, kept = patches(images, config.patch_size), None
        if train and config.patch_dropout:
            x, kept = drop_patches(self, x, config)
        positions = _positions(self, config.num_patches, sizes.embed_dim)
        x = embed(x).astype(jnp.float32) + (positions if kept is None else positions[kept])
        x = _encoder(sizes)(x, deterministic=not train)[0]
        x = layer_norm(sizes.norm_epsilon, "norm_post")(x)
        return AttentionPooling(sizes, initializers.siglip_blocks(sizes), name="pooling")(x)


class AttentionPooling(nn.Module):
    """One learned query attends to all positions; then an MLP around which what was attended goes unchanged."""

    config: TransformerConfig
    init_fns: BlockInit

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        """Args: x: after its norm. Returns: float32."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        batch, length, width = x.shape
        inner = config.num_heads * config.head_dim
        probe = self.param("probe", _boxed(initializers.siglip_probe, ("embed",)), (width,), jnp.float32)
        kernel_init = _boxed(self.init_fns.qkv, ("embed", None, "heads"))
        kernel = self.param("qkv_kernel", kernel_init, (width, 3, inner), jnp.float32).astype(dtype)
        bias = self.param("qkv_bias", _boxed(nn.initializers.zeros, (None, "heads")), (3, inner), jnp.float32)
        q = add_bias(matmul(probe.astype(dtype), kernel[:, 0]), bias[0])
        q = jnp.broadcast_to(q.astype(jnp.float32), (batch, inner)).astype(dtype)  # its gradient sums over the batch
        q = q.reshape(batch, 1, config.num_heads, config.head_dim)
        kv = add_bias(einsum("btd,dcw->cbtw", x.astype(dtype), kernel[:, 1:]), bias[1:, None, None])
        k, v = kv.reshape(2, batch, length, config.num_heads, config.head_dim)
        attended = dense_attention(q, k, v).reshape(batch, 1, inner)
        out = Dense(width, ("heads", "embed"), self.init_fns.out, dtype=dtype, name="out")
        x = out(attended).astype(jnp.float32)
        h = layer_norm(config.norm_epsilon, "norm")(x)
        return (x + Mlp(config, self.init_fns, name="mlp")(h).astype(jnp.float32))[:, 0]


class SiglipText(nn.Module):
    """Blocks that attend both ways over tokens, pads among them; the feature stands at the last position.

    Captions fill all `context_length` positions. The published tokenizer ends them with id 1 and pads with it, so that
    the last position always holds it.
    """

    config: TextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], *, train: bool = False) -> Float[Array, "B D"]:
        """Args: ids: captions; train: drop activations, by the stream `dropout`. Returns: features before the head."""
        config, sizes = self.config, self.config.transformer
        if ids.shape[1] != config.context_length:
            raise ValueError(f"SigLIP reads captions of {config.context_length} positions, not {ids.shape[1]}")
        x = TokenEmbedding(config, sizes.embed_dim**-0.5, name="token_embedding")(ids)
        x += _positions(self, config.context_length, sizes.embed_dim)
        x = _encoder(sizes)(x, deterministic=not train)[0]
        return layer_norm(sizes.norm_epsilon, "norm_final")(x[:, -1])


def _encoder(sizes: TransformerConfig) -> Transformer:
    blocks, attend = initializers.siglip_blocks(sizes), same_everywhere(dense_attention)
    return Transformer(sizes, blocks, uniform_kinds(sizes), attend, name="transformer")


def _positions(module: nn.Module, count: int, width: int) -> Float[Array, "T D"]:
    init = _boxed(normal(width**-0.5), (None, "embed"))
    return module.param("position_embedding", init, (count, width), jnp.float32).astype(jnp.float32)


def _boxed(init: nn.initializers.Initializer, axes: tuple[str | None, ...]) -> nn.initializers.Initializer:
    return nn.with_logical_partitioning(init, axes)
