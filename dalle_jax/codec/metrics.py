"""What a person wants to know of a codec: how near its images are, and how much of its codebook it uses."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

FOREGROUND_DISTANCE = 24 / 255
"""A pixel that differs by more than this from its image's border colour, in any channel, is foreground."""


def psnr(mean_squared_error: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1]; at most 100, where nothing differs."""
    return -10.0 * jnp.log10(jnp.maximum(mean_squared_error, 1e-10))


def image_errors(
    pixels: Float[Array, "B height width 3"], images: UInt8[Array, "B height width 3"]
) -> dict[str, Float[Array, " B"]]:
    """How far reconstructions are from their originals, image by image.

    Most of an image is often background, and a codec that draws nothing else can have a fair PSNR. The foreground's
    own error shows it: `foreground` beside `flat`, the error of painting the border's colour there.

    Args:
      pixels: reconstructions in [0, 1].
      images: originals.

    Returns:
      `mse`: mean squared error; `foreground`: squared error summed over foreground values; `flat`: the same for an
      image of its border colour (the median of the border's pixels) alone; `foreground_values`: their number.
    """
    originals = images.astype(jnp.float32) / 255.0
    squares = jnp.square(pixels - originals)
    edges = (originals[:, 0], originals[:, -1], originals[:, :, 0], originals[:, :, -1])
    border = jnp.median(jnp.concatenate(edges, axis=1), axis=1)[:, None, None, :]
    from_border = jnp.abs(originals - border)
    foreground = jnp.any(from_border > FOREGROUND_DISTANCE, axis=-1, keepdims=True)
    everything = (1, 2, 3)
    return {
        "mse": jnp.mean(squares, axis=everything),
        "foreground": jnp.sum(squares * foreground, axis=everything),
        "flat": jnp.sum(jnp.square(from_border) * foreground, axis=everything),
        "foreground_values": 3.0 * jnp.sum(foreground, axis=everything),
    }


def code_counts(
    tokens: Int[Array, "B height width"], codebook_size: int, rows: Float[Array, " B"] | None = None
) -> Float[Array, " K"]:
    """How often each code occurs; `rows` weighs the images."""
    weights = None if rows is None else jnp.broadcast_to(rows[:, None, None], tokens.shape).reshape(-1)
    return jnp.bincount(tokens.reshape(-1), weights, length=codebook_size).astype(jnp.float32)


def usage_metrics(counts: Float[Array, " K"]) -> dict[str, Float[Array, ""]]:
    """`codebook_usage`, the share of codes that occur, and `perplexity`, exp of the entropy of their frequencies."""
    frequencies = counts / jnp.maximum(jnp.sum(counts), 1.0)
    entropy = -jnp.sum(frequencies * jnp.log(jnp.maximum(frequencies, 1e-20)))
    return {"codebook_usage": jnp.mean(counts > 0, dtype=jnp.float32), "perplexity": jnp.exp(entropy)}


def usage_collapsed(counts: np.ndarray, alarm_share: float) -> bool:
    """Whether fewer codes occur than `alarm_share` of those that could have: all, or one a token if these are few."""
    possible = min(len(counts), int(np.sum(counts)))
    return int(np.count_nonzero(counts)) < alarm_share * possible
