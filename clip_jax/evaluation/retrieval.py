"""Retrieval among images and captions (Radford et al. 2021, App. E.1)."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from clip_jax.evaluation.zero_shot import unit

_CHUNK = 512  # queries whose scores are held at once


def retrieval_recalls(
    image: Float[np.ndarray, "n E"],
    text: Float[np.ndarray, "captions E"],
    owners: Int[np.ndarray, " captions"],
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at k both ways, by cosine. An image may have several captions; any of them in the first k is a hit.

    Where another candidate scores exactly as the right one, the other counts as before it.

    Args:
      image: features of images.
      text: features of captions.
      owners: of each caption, the row of its image.
      ks: how far down the list to look.

    Returns:
      `text_recall_at_K`: share of images one of whose captions is among the K best; `image_recall_at_K`: share of
      captions whose image is.
    """
    image, text = unit(image), unit(text)
    to_text, to_image = np.empty(len(image), np.int64), np.empty(len(text), np.int64)
    for part in _chunks(len(image)):
        scores, own = image[part] @ text.T, owners == np.arange(len(image))[part, None]
        best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
        # "Not below" rather than "at least": what is not a number is no hit.
        to_text[part] = np.sum(~(scores < best) & ~own, axis=1)
    for part in _chunks(len(text)):
        scores, own = text[part] @ image.T, owners[part, None] == np.arange(len(image))
        to_image[part] = np.sum(~(scores < scores[own][:, None]) & ~own, axis=1)
    ranks = {"text": to_text, "image": to_image}
    return {f"{name}_recall_at_{k}": float(np.mean(rank < k)) for name, rank in ranks.items() for k in ks}


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
