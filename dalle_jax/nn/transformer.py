"""Pre-norm transformer blocks, and the stack that scans over them.

One implementation serves the DALL·E decoder (training, prefill and cached decoding), both CLIP towers and anything
added later: what differs between them is how positions attend to each other, and that is a function they pass in.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from dalle_jax.config import check_at_least, check_share
from dalle_jax.nn.layers import Activation, Dense, check_dtype, constrain_activations, layer_norm
from dalle_jax.nn.precision import add_bias, einsum
from dalle_jax.nn.remat import Remat, rematerialised


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a stack of blocks. Lengths of axes follow the key in `dalle_jax.nn`."""

    num_layers: int
    embed_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    activation: Activation = Activation.GELU
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """Rate on what each half of a block adds to the residual stream; needs a `dropout` key where it is not 0."""
    remat: Remat = Remat.NONE
    scan: bool = True
    """Compile one group of layers and loop over it; False unrolls (the parameters keep the same layout)."""
    dtype: str = "float32"
    """Of matrix products: `float32` or `bfloat16`. Parameters, norms, softmax and the residual stream are float32."""

    def __post_init__(self):
        check_at_least(1, self, "num_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim")
        check_share(self, "dropout")
        check_dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initialisers of a block's weights. The default is GPT-2's: 0.02, and less into the residual stream by depth."""

    qkv: nn.initializers.Initializer
    out: nn.initializers.Initializer
    mlp_in: nn.initializers.Initializer
    mlp_out: nn.initializers.Initializer
    mlp_in_bias: nn.initializers.Initializer = nn.initializers.zeros
    mlp_out_bias: nn.initializers.Initializer = nn.initializers.zeros

    @classmethod
    def gpt2(cls, num_layers: int) -> "BlockInit":
        """Those of GPT-2, for a stack of `num_layers`."""
        normal, residual = nn.initializers.normal(0.02), nn.initializers.normal(0.02 / (2 * num_layers) ** 0.5)
        return cls(qkv=normal, out=residual, mlp_in=normal, mlp_out=residual)


@runtime_checkable
class Attend(Protocol):
    """How the positions of one layer attend to each other.

    Takes the layer's kind (for the decoder, its attention pattern), `q`, `k`, `v` of `[B, T, N, H]`, the layer's slice
    of the caches (or None) and the context given to the stack; returns `[B, T, N, H]` and whatever the caller wants
    back from each layer (new cache entries, say).
    """

    def __call__(self, kind: Hashable, q: Array, k: Array, v: Array, cache: Any, context: Any) -> tuple[Array, Any]: ...


class Attention(nn.Module):
    """Projections around an attention function: q, k, v in one product, and the way back to the residual width."""

    config: TransformerConfig
    init_fns: BlockInit
    kind: Hashable
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], cache: Any, context: Any) -> tuple[Float[Array, "B T D"], Any]:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width = config.num_heads * config.head_dim
        qkv = self.project_qkv(x.astype(dtype), width)
        # Of one position activations travel, not kernels: first as the kernel splits them, then whole rows, since
        # heads that the mesh does not divide can be cut in no other way without a sum over all devices.
        if cache is not None:
            qkv = constrain_activations(nn.with_logical_constraint(qkv, ("stream", None, None, "heads")))
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, config.num_heads, config.head_dim), 2, 0)
        attended, aux = self.attend(self.kind, q, k, v, cache, context)
        attended = attended.reshape(*x.shape[:2], width)
        if cache is not None:
            attended = nn.with_logical_constraint(constrain_activations(attended), ("stream", None, "heads"))
        out = Dense(x.shape[-1], ("heads", "embed"), self.init_fns.out, dtype=dtype, name="out")(attended)
        return out, aux

    def project_qkv(self, x: Float[Array, "B T D"], width: int) -> Float[Array, "B T 3 W"]:
        """Queries, keys and values of all heads, side by side."""

        # [D, 3, N*H], not [D, 3*N*H]: a mesh axis that splits the heads must not cut between q, k and v.
        def qkv_init(key, shape, param_dtype):
            return self.init_fns.qkv(key, (shape[0], shape[1] * shape[2]), param_dtype).reshape(shape)

        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (None, "heads"))
        bias = self.param("qkv_bias", bias_init, (3, width), jnp.float32)
        kernel_init = nn.with_logical_partitioning(qkv_init, ("embed", None, "heads"))
        kernel = self.param("qkv_kernel", kernel_init, (x.shape[-1], 3, width), jnp.float32)
        return add_bias(einsum("btd,dcw->btcw", x, kernel.astype(x.dtype)), bias)


class Mlp(nn.Module):
    """Two dense layers with a non-linearity between them."""

    config: TransformerConfig
    init_fns: BlockInit

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        config, init_fns, dtype = self.config, self.init_fns, jnp.dtype(self.config.dtype)
        h = Dense(config.mlp_dim, ("embed", "mlp"), init_fns.mlp_in, init_fns.mlp_in_bias, dtype=dtype, name="in")(x)
        h = config.activation(h)
        return Dense(x.shape[-1], ("mlp", "embed"), init_fns.mlp_out, init_fns.mlp_out_bias, dtype=dtype, name="out")(h)


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, the residual stream in float32 (DALL·E Fig. 4)."""

    config: TransformerConfig
    init_fns: BlockInit
    kind: Hashable
    attend: Attend

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], cache: Any, context: Any, deterministic: bool
    ) -> tuple[Float[Array, "B T D"], Any]:
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=deterministic)
        h = layer_norm(config.norm_epsilon, "norm_1")(x)
        h, aux = Attention(config, self.init_fns, self.kind, self.attend, name="attention")(h, cache, context)
        x = constrain_activations(x + drop(h).astype(x.dtype))
        h = layer_norm(config.norm_epsilon, "norm_2")(x)
        h = Mlp(config, self.init_fns, name="mlp")(h)
        return constrain_activations(x + drop(h).astype(x.dtype)), aux


class Group(nn.Module):
    """The repeating group of layers: one block per kind, each rematerialised on its own."""

    config: TransformerConfig
    init_fns: BlockInit
    kinds: tuple[Hashable, ...]
    attend: Attend
    deterministic: bool
    looped: bool
    """Whether a compiled loop runs it."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], caches: Any, context: Any):
        alone = self.looped and len(self.kinds) == 1
        block = rematerialised(Block, self.config.remat, scanned=alone, static_argnums=(4,))
        outputs = []
        for i, kind in enumerate(self.kinds):
            cache = None if caches is None else caches[i]
            layer = block(self.config, self.init_fns, kind, self.attend, name=f"layer_{i}")
            x, aux = layer(x, cache, context, self.deterministic)
            outputs.append(aux)
        return x, tuple(outputs)


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """How a schedule of layer kinds is cut: `repeats` times `group`, then `tail`."""

    group: tuple[Hashable, ...]
    repeats: int
    tail: tuple[Hashable, ...]

    @classmethod
    def of(cls, kinds: Sequence[Hashable], stacked: bool = True) -> "GroupPlan":
        """Finds the cut that compiles the fewest blocks (`group` + `tail`), the shortest group among equals.

        Args:
          kinds: of all layers, first to last.
          stacked: False: no group, all layers in the tail, each with parameters of its own.
        """
        kinds = tuple(kinds)
        if not kinds:
            raise ValueError("a stack needs at least one layer")
        if not stacked:
            return cls((), 0, kinds)
        plans = []
        for period in range(1, len(kinds) + 1):
            repeats = 1
            while kinds[repeats * period : (repeats + 1) * period] == kinds[:period]:
                repeats += 1
            plans.append(cls(kinds[:period], repeats, kinds[repeats * period :]))
        return min(plans, key=lambda plan: len(plan.group) + len(plan.tail))


class Transformer(nn.Module):
    """A stack of blocks of given kinds.

    Attributes:
      config: sizes.
      init_fns: initialisers of every block.
      kinds: the kind of each layer, first to last; handed to `attend`.
      attend: see `Attend`.

    Parameters of the repeated group are stacked over an axis named `layers`, whether or not the loop is compiled as a
    scan, so that a checkpoint does not depend on `config.scan`.
    """

    config: TransformerConfig
    init_fns: BlockInit
    kinds: tuple[Hashable, ...]
    attend: Attend

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], caches: Any = None, context: Any = None, *, deterministic: bool = True
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs the stack.

        Args:
          x: the residual stream, float32.
          caches: what `attend` gets as `cache`, in the form of this call's second result: `(group, tail)`, where
            `group` holds one entry per layer of the group with a leading `layers` axis, and `tail` one per layer.
          context: handed to every `attend` unchanged.
          deterministic: False applies dropout, from the `dropout` random stream.

        Returns:
          The residual stream after the last block (no final norm), and what `attend` returned beside its result, in
          the form of `caches`.
        """
        plan = GroupPlan.of(self.kinds, stacked=self._stacked)
        group_caches, tail_caches = (None, None) if caches is None else caches
        group_out = tail_out = ()
        if plan.group:
            scanned = nn.scan(
                Group,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),
                length=plan.repeats,
                unroll=1 if self.config.scan else plan.repeats,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            looped = self.config.scan and plan.repeats > 1
            group = scanned(self.config, self.init_fns, plan.group, self.attend, deterministic, looped, name="group")
            x, group_out = group(x, group_caches, context)
        if plan.tail:
            tail = Group(self.config, self.init_fns, plan.tail, self.attend, deterministic, False, name="tail")
            x, tail_out = tail(x, tail_caches, context)
        return x, (group_out, tail_out)

    @property
    def _stacked(self) -> bool:
        """Whether the parameters of equal layers are stacked, as `init` makes them; the stack runs on either form."""
        return self.has_variable("params", "group") or not self.has_variable("params", "tail")


def uniform_kinds(config: TransformerConfig) -> tuple[None, ...]:
    """The schedule of a stack whose layers are all alike."""
    return (None,) * config.num_layers


AttentionFunction = Callable[[Array, Array, Array], Array]


def same_everywhere(function: AttentionFunction) -> Attend:
    """An `Attend` that applies one function of `(q, k, v)` in every layer and gives nothing back."""

    def attend(kind, q, k, v, cache, context):
        del kind, cache, context
        return function(q, k, v), None

    return attend
