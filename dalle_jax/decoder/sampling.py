"""Sampling image tokens: one prefill of the prompts, then one compiled loop over all image positions.

The noise of candidate i depends on (seed, i) alone: not on the prompt, on how many candidates are sampled, on the chunk
it is sampled in, or on the mesh.
"""

import dataclasses
import functools
import math
import warnings
from numbers import Real
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.decoder.model import Decoder, spread
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import CacheLayout, KeyValue, LayerCache
from dalle_jax.nn.cpu_decoding import DecodingLayout, kernels_as_rows, layers_as_rows, multiply_rows
from dalle_jax.nn.transformer import GroupPlan
from dalle_jax.training.parallel.sharding import ShardingRules, shard_bytes

_SMALLEST_TEMPERATURE = float(np.finfo(np.float32).tiny)
"""What is below is 0 on devices that have no subnormal numbers."""

_LARGEST_GUIDANCE = 1e6
"""Far beyond any use; without a limit, float32 logits overflow."""


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a token is sampled from logits. The paper samples at temperature 1 from all codes.

    A compiled program serves every temperature, `top_p` and `guidance_scale`: they are arguments of it, and whether
    they do anything is its form.
    """

    temperature: float = 1.0
    """Divides the logits; 0, the limit of small ones, takes the most likely code."""
    top_k: int | None = None
    """Sample among this many most likely codes."""
    top_p: float | None = None
    """Sample among the fewest most likely codes that hold this much probability, in (0, 1]."""
    guidance_scale: float = 1.0
    """1: the caption's logits. s: `empty + s * (caption - empty)`; needs a model trained with caption dropout."""

    def __post_init__(self):
        """Raises: UserError: a number is not finite, or out of its range."""
        for name in ("temperature", "top_k", "top_p", "guidance_scale"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                raise UserError(f"{name} must be a finite number, not {value!r}")
        if self.temperature < 0:
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None:
            if self.top_k < 1 or self.top_k % 1:
                raise UserError(f"top_k must be a whole number, 1 or more, not {self.top_k}")
            object.__setattr__(self, "top_k", int(self.top_k))  # 5.0 is as good as 5
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if abs(self.guidance_scale) > _LARGEST_GUIDANCE:
            raise UserError(f"guidance_scale must be at most {_LARGEST_GUIDANCE:,.0f}, not {self.guidance_scale}")

    @functools.cached_property
    def greedy(self) -> bool:
        """Whether the most likely code is taken."""
        return self.temperature < _SMALLEST_TEMPERATURE

    @functools.cached_property
    def nucleus(self) -> bool:
        """Whether `top_p` excludes codes."""
        return self.top_p is not None and self.top_p < 1

    @functools.cached_property
    def guided(self) -> bool:
        """Whether the empty caption's branch runs beside the prompt's."""
        return self.guidance_scale != 1.0

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Numbers that a program takes as arguments, and what its form depends on."""
        numbers = self.temperature, self.top_p, self.guidance_scale
        return numbers, (self.top_k, self.greedy, self.nucleus, self.guided)

    @classmethod
    def tree_unflatten(cls, form: tuple[Any, ...], numbers: tuple[Any, ...]) -> "SamplingConfig":
        """The inverse of `tree_flatten`."""
        self = object.__new__(cls)  # without checks: inside a program the numbers have no values
        names = "temperature", "top_p", "guidance_scale", "top_k", "greedy", "nucleus", "guided"
        self.__dict__.update(zip(names, (*numbers, *form), strict=True))
        return self


class Prime(NamedTuple):
    """Given first image tokens: positions below `length` are taken from `tokens`, not sampled."""

    tokens: Int[Array, "P G"]
    length: Int[Array, ""]


def candidate_keys(seed: int, indices: Int[Array, " C"]) -> Key[Array, " C"]:
    """The key of each candidate, by its index."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(indices)


def filter_logits(logits: Float[Array, "... K"], sampling: SamplingConfig) -> Float[Array, "... K"]:
    """Logits by temperature, less their maximum, with -inf on the codes that `top_k` and `top_p` exclude (top_k first).

    The most likely code always stays; codes as likely as the last one admitted stay with it.
    """
    # Of differences the largest is 0 at every temperature; logits themselves would overflow, all positive ones alike.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    if sampling.nucleus:
        assert sampling.top_p is not None
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        smallest = jnp.min(jnp.where(before < sampling.top_p, descending, jnp.inf), axis=-1, keepdims=True)
        smallest = jnp.minimum(smallest, descending[..., :1])  # a `top_p` that is 0 in float32 admits none
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    return logits


def choose(
    logits: Float[Array, "C P K"], keys: Key[Array, " C"], position: Int[Array, ""], sampling: SamplingConfig
) -> Int[Array, "C P"]:
    """Draws a code for every candidate of every prompt (Gumbel-max; a candidate's noise is one for all prompts)."""
    if sampling.greedy:
        return jnp.argmax(logits, axis=-1)

    def gumbel(key):
        return jax.random.gumbel(jax.random.fold_in(key, position), logits.shape[-1:])

    noise = jax.vmap(gumbel)(keys)
    return jnp.argmax(filter_logits(logits, sampling) + noise[:, None], axis=-1)


def guide(logits: Float[Array, "C Q K"], scale: float | Float[Array, ""]) -> Float[Array, "C P K"]:
    """Classifier-free guidance over a batch whose second half of prompts has the empty caption (Q = 2 P)."""
    caption, empty = jnp.split(logits, 2, axis=1)
    return empty + scale * (caption - empty)


def make_caches(config: DecoderConfig, text_kv: Any, candidates: int) -> Any:
    """Every layer's `LayerCache` in the stack's form: the prefill's text, and an empty image part."""
    group_kv, tail_kv = text_kv
    plan = GroupPlan.of(config.schedule, stacked=bool(group_kv))

    def layer(pattern, text: KeyValue, leading):
        layout = CacheLayout(pattern, config.grid)
        prompts = text.k.shape[-4]
        image = layout.empty(candidates, prompts, config.num_heads, config.head_dim, text.k.dtype)
        if leading:
            image = KeyValue(*(jnp.broadcast_to(x, (leading, *x.shape)) for x in image))
        return LayerCache(text, KeyValue(*(spread(x, leading=int(leading > 0)) for x in image)))

    group = tuple(layer(p, kv, plan.repeats) for p, kv in zip(plan.group, group_kv, strict=True))
    tail = tuple(layer(p, kv, 0) for p, kv in zip(plan.tail, tail_kv, strict=True))
    return group, tail


def store(config: DecoderConfig, caches: Any, new: Any, position: Int[Array, ""]) -> Any:
    """Writes the keys and values that a step returned into the caches of all layers."""
    plan = GroupPlan.of(config.schedule, stacked=bool(caches[0]))

    def write(pattern, cache: LayerCache, entry: KeyValue) -> LayerCache:
        layout = CacheLayout(pattern, config.grid)
        return LayerCache(cache.text, layout.write(cache.image, entry, position))

    return tuple(
        tuple(map(write, kinds, part, entries))
        for kinds, part, entries in zip((plan.group, plan.tail), caches, new, strict=True)
    )


def sampling_params(config: DecoderConfig, params: Any, layout: DecodingLayout) -> Any:
    """Parameters as sampling reads them, made once: at every step that would cost more than the step.

    Kernels inside the stack are cast to the dtype that they are multiplied in (the heads' stay float32).

    Args:
      config: of the model.
      params: of the model, unboxed; or what this function made of them.
      layout: to bring them into; parameters that lie in rows stay so.

    Returns:
      What `prefill` and `sample_tokens` take in place of `params`, with as many numbers.
    """

    def cast(path, x):
        return x.astype(config.dtype) if "kernel" in path[-1].key else x

    params = {**params, "transformer": jax.tree_util.tree_map_with_path(cast, params["transformer"])}
    if layout is DecodingLayout.of(params["transformer"]) or layout is DecodingLayout.STACKED:
        return params
    stack = layers_as_rows(params["transformer"], config.schedule)
    return {**params, "transformer": stack, "image_head": kernels_as_rows(params["image_head"])}


def drawing_params(config: DecoderConfig, params: Any, mesh: Mesh) -> Any:
    """Deprecated: `sampling_params` with the layout that is fastest on a mesh."""
    warnings.warn("drawing_params is sampling_params now", FutureWarning, stacklevel=2)
    return sampling_params(config, params, DecodingLayout.fastest(mesh))


def sampling_rules(rules: ShardingRules, boxed: Any, mesh: Mesh, free: int) -> ShardingRules:
    """Rules for sampling: weights are split over `mlp`, `heads` and `vocab` alone where memory allows that.

    Training gathers the parts along `embed` once for thousands of positions; sampling would, for every token. Nor are
    the other parts gathered: rows of activations are, over the axes of `mlp`.

    Args:
      rules: that the parameters are trained with.
      boxed: abstract float32 parameters with their logical axes.
      mesh: to sample on.
      free: bytes over all of its devices.

    Returns:
      The rules without `embed`, or as they are where that would take over a third of `free`.
    """
    stream = tuple(axis for axis in rules.batch if axis not in rules.mlp)
    whole = dataclasses.replace(rules, embed=(), stream=stream)
    return whole if 3 * mesh.devices.size * shard_bytes(boxed, mesh, whole) <= free else rules


def apply_decoder(config: DecoderConfig, params: Any, *args: Any, method: str) -> Any:
    """A method of `Decoder` with parameters of any `DecodingLayout`."""
    with nn.intercept_methods(multiply_rows):
        return Decoder(config).apply({"params": params}, *args, method=method)


@functools.partial(jax.jit, static_argnames=("config",))
def prefill(config: DecoderConfig, params: Any, text: Int[Array, "P T"]) -> Any:
    """Text keys and values of every layer; run once for all chunks of a prompt's candidates."""
    return apply_decoder(config, params, text, method="prefill")


@functools.partial(jax.jit, static_argnames=("config",))
def sample_tokens(
    config: DecoderConfig,
    params: Any,
    text_kv: Any,
    keys: Key[Array, " C"],
    prime: Prime,
    sampling: SamplingConfig,
) -> Int[Array, "C P G"]:
    """Samples all image tokens of C candidates of each of P prompts.

    Args:
      config: of the model.
      params: of the model.
      text_kv: of `prefill`; with guidance, of the P prompts followed by P empty captions.
      keys: one per candidate, of `candidate_keys`.
      prime: tokens to start from.
      sampling: how.

    Returns:
      Codes in raster order.
    """
    candidates, prompts = keys.shape[0], prime.tokens.shape[0]
    branches = 2 if sampling.guided else 1

    def step(carry, position):
        previous, caches = carry
        inputs = jnp.tile(previous, (1, branches))
        out = apply_decoder(config, params, inputs, position, caches, method="step")
        logits = guide(out.logits, sampling.guidance_scale) if sampling.guided else out.logits
        token = choose(logits, keys, position, sampling).astype(jnp.int32)
        token = jnp.where(position < prime.length, prime.tokens[:, position], token)
        # Where this position is written depends on what was sampled, if in name alone (codes are never negative): so
        # that the compiler writes after all layers have read, in place, and does not copy the caches.
        place = jnp.where(jnp.min(token) < 0, 0, position)
        return (token, store(config, caches, out.new, place)), token

    start = jnp.zeros((candidates, prompts), jnp.int32), make_caches(config, text_kv, candidates)
    _, tokens = jax.lax.scan(step, start, jnp.arange(config.image_length))
    return jnp.moveaxis(tokens, 0, -1)


def no_prime(config: DecoderConfig, prompts: int) -> Prime:
    """Nothing given: every token is sampled."""
    return Prime(jnp.zeros((prompts, config.image_length), jnp.int32), jnp.int32(0))


def with_empty_captions(text: Int[Array, "P T"]) -> Int[Array, "2*P T"]:
    """The prompts, followed by as many captions that hold start-of-text alone."""
    empty = jnp.zeros_like(text).at[:, 0].set(text[:, 0])
    return jnp.concatenate([text, empty])


def __getattr__(name: str) -> Any:
    """`draw`, deprecated: `sample_tokens`."""
    if name != "draw":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("draw is sample_tokens now", FutureWarning, stacklevel=2)
    return sample_tokens
