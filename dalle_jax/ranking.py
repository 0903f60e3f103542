"""Samples ranked by a score, of which the best are kept (DALL·E §2.6)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from dalle_jax.errors import UserError

ScoreFn = Callable[[jax.Array, str], jax.Array | np.ndarray]
"""`(uint8 images [batch, height, width, 3], caption) -> float32 [batch]`, higher is better; CLIP's `score`."""

PUBLISHED_KEEP = 32
"""Of 512 samples of a caption."""


class Samples(NamedTuple):
    """What was kept, best first (in candidate order without a score). No `prompts` axis for a single string."""

    images: UInt8[np.ndarray, "prompts keep height width 3"]
    scores: Float[np.ndarray, "prompts keep"]
    """NaN without a `score_fn`."""
    tokens: Int[np.ndarray, "prompts keep G"]
    indices: Int[np.ndarray, "prompts keep"]
    """Which candidate each image was: with the seed, its name."""


def choose_keep(num_samples: int, keep: int | None, score_fn: ScoreFn | None) -> int:
    """How many samples are kept: `keep`, else the published 32 (or all, if fewer) with a score, else all.

    Raises:
      UserError: `num_samples` is below 1, `keep` is not from 1 to `num_samples`, or nothing ranks them.
    """
    if num_samples < 1:
        raise UserError(f"num_samples must be 1 or more, not {num_samples}")
    if keep is None:
        keep = num_samples if score_fn is None else min(PUBLISHED_KEEP, num_samples)
    if not 1 <= keep <= num_samples:
        raise UserError(f"keep is {keep}, but num_samples is {num_samples}: keep at most what is sampled")
    if score_fn is None and keep != num_samples:
        raise UserError(
            f"nothing ranks the {num_samples} samples to keep {keep}: give a score_fn (clip.score), or leave keep out"
        )
    return keep


class Best:
    """The best candidates so far of every prompt; only tokens are held, whatever the number of candidates."""

    def __init__(self, prompts: int, keep: int):
        self.keep = keep
        self.rows: list[list[tuple[float, int, np.ndarray]]] = [[] for _ in range(prompts)]

    def add(
        self,
        prompts: slice,
        indices: Int[np.ndarray, " C"],
        tokens: Int[np.ndarray, "C P G"],
        scores: Float[np.ndarray, "C P"],
    ) -> None:
        """Takes candidates of some prompts, by their indices."""
        for p, prompt in enumerate(range(prompts.start, prompts.stop)):
            new = [(float(scores[c, p]), int(i), tokens[c, p]) for c, i in enumerate(indices)]
            # Best first, last what could not be scored; candidate order breaks ties, and stands alone without scores.
            merged = sorted(
                self.rows[prompt] + new, key=lambda row: (math.isnan(row[0]), -np.nan_to_num(row[0]), row[1])
            )
            self.rows[prompt] = merged[: self.keep]

    def samples(self, decode: Callable[[Int[np.ndarray, "B G"]], UInt8[np.ndarray, "B height width 3"]]) -> Samples:
        """What was kept, decoded by the codec a prompt at a time."""
        scores = np.asarray([[score for score, _, _ in rows] for rows in self.rows], np.float32)
        indices = np.asarray([[index for _, index, _ in rows] for rows in self.rows], np.int32)
        tokens = np.asarray([[codes for _, _, codes in rows] for rows in self.rows])
        return Samples(np.stack([decode(row) for row in tokens]), scores, tokens, indices)
