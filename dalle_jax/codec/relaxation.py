"""How encoder features become codes, with a gradient: Gumbel-softmax, and nearest codes of a moving codebook."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dalle_jax.codec.config import VqConfig
from dalle_jax.nn.precision import matmul

CodebookState = dict[str, Any]
"""`codebook` float32 [K, E], and moving averages over updates: `counts` [K], how many vectors chose each code, and
`sums` [K, E], their sum. It is model state, not trained by gradient. All averages are over the global batch: the sums
run over arrays that are sharded over the mesh, and the compiler adds what the devices hold."""


def gumbel_softmax(
    logits: Float[Array, "B height width K"], temperature: Array | float, key: jax.Array
) -> Float[Array, "B height width K"]:
    """A relaxed one-hot sample of the categorical distribution of `logits` (Jang et al. 2016; Maddison et al. 2016)."""
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    return jax.nn.softmax((logits + noise) / temperature, axis=-1)


def init_codebook(config: VqConfig, codebook_size: int, key: jax.Array) -> CodebookState:
    """Random codes that nothing has used: the first update fills the codebook with vectors of the first batch."""
    codebook = jax.random.normal(key, (codebook_size, config.code_dim), jnp.float32)
    return {
        "codebook": unit_length(codebook) if config.normalize else codebook,
        "counts": jnp.zeros((codebook_size,), jnp.float32),
        "sums": jnp.zeros((codebook_size, config.code_dim), jnp.float32),
    }


def unit_length(vectors: Float[Array, "*shape E"]) -> Float[Array, "*shape E"]:
    """Scales the last axis to length 1."""
    return vectors * jax.lax.rsqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + 1e-12)


def squared_distances(vectors: Float[Array, "*batch E"], codebook: Float[Array, "K E"]) -> Float[Array, "*batch K"]:
    """Squared Euclidean distance to every code, less each vector's own squared length (which no comparison needs)."""
    return jnp.sum(jnp.square(codebook), axis=-1) - 2.0 * matmul(vectors, codebook.T)


def nearest_codes(vectors: Float[Array, "*batch E"], codebook: Float[Array, "K E"]) -> Int[Array, "*batch"]:
    """Index of the nearest code, int32; the first among equals."""
    return jnp.argmin(squared_distances(vectors, codebook), axis=-1).astype(jnp.int32)


def straight_through(vectors: Float[Array, "*shape"], codes: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The value of `codes` with the gradient of `vectors`."""
    return vectors + jax.lax.stop_gradient(codes - vectors)


def update_codebook(
    config: VqConfig,
    state: CodebookState,
    vectors: Float[Array, "B height width E"],
    tokens: Int[Array, "B height width"],
    key: jax.Array,
) -> tuple[CodebookState, Float[Array, ""]]:
    """Moves every code towards the mean of the vectors that chose it, and revives dead codes.

    A code whose average count falls under `dead_share` of an even share is dead. It takes the place of one of this
    batch's vectors, drawn without replacement with probability in proportion to the squared distance to the nearest
    code (as k-means++ draws its seeds): what is coded worst is what gets a code.

    Args:
      config: decay and threshold.
      state: before the update.
      vectors: what the encoder put out for the global batch.
      tokens: their nearest codes.
      key: for the draw.

    Returns:
      The state after the update, and how many codes were revived.
    """
    vectors = jax.lax.stop_gradient(vectors).reshape(-1, vectors.shape[-1])
    tokens = tokens.reshape(-1)
    codebook_size = state["counts"].shape[0]
    chosen = jax.nn.one_hot(tokens, codebook_size, dtype=jnp.float32)
    counts = config.decay * state["counts"] + (1.0 - config.decay) * jnp.sum(chosen, axis=0)
    sums = config.decay * state["sums"] + (1.0 - config.decay) * matmul(chosen.T, vectors)

    even_share = vectors.shape[0] / codebook_size
    dead = counts < config.dead_share * even_share
    distances = jnp.sum(jnp.square(vectors - state["codebook"][tokens]), axis=-1)
    seeds = vectors[_draw_without_replacement(distances, codebook_size, key)]
    fresh = 3.0 * config.dead_share * even_share  # some time to find vectors of its own
    counts = jnp.where(dead, fresh, counts)
    sums = jnp.where(dead[:, None], fresh * seeds, sums)
    used = counts[:, None] > 1e-9  # without revival, a code that nothing chooses stays where it is
    codebook = jnp.where(used, sums / jnp.maximum(counts, 1e-9)[:, None], state["codebook"])
    if config.normalize:
        codebook = unit_length(codebook)
    return {"codebook": codebook, "counts": counts, "sums": sums}, jnp.sum(dead.astype(jnp.float32))


def _draw_without_replacement(weights: Float[Array, " n"], count: int, key: jax.Array) -> Int[Array, " count"]:
    """`count` indices in proportion to `weights` (Gumbel top-k); repeated from the start where there are too few."""
    scores = jnp.log(weights + 1e-9) + jax.random.gumbel(key, weights.shape)
    _, indices = jax.lax.top_k(scores, min(count, weights.shape[0]))
    return jnp.resize(indices, (count,))
