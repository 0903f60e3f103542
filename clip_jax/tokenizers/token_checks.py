"""What a tokenizer gives, looked at before a model reads it: a wrong id would be a wrong feature, without a word."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from clip_jax.config import ReadAt, TextConfig
from dalle_jax.errors import UserError


def checked_rows(rows: Any, texts: Sequence[str], config: TextConfig) -> Int32[np.ndarray, "n T"]:
    """The ids of captions, as a model takes them.

    Args:
      rows: what `tokenize` gave: an array, tensor or list of integers [n, context_length].
      texts: the n captions.
      config: of the text tower.

    Raises:
      UserError: they are of another shape or type, an id is outside the vocabulary, or a caption has no end-of-text
        token and the tower is read there; the message names the caption.
    """
    wanted = f"int [{len(texts)}, {config.context_length}], a row for each caption"
    try:
        ids = np.asarray(rows)
    except (TypeError, ValueError, RuntimeError) as error:  # lists of several lengths; tensors on a device
        raise UserError(f"tokenize gave no array ({error}): it gives {wanted}") from error
    if ids.dtype.kind not in "iu" or ids.shape != (len(texts), config.context_length):
        raise UserError(f"tokenize gave {ids.dtype} {list(ids.shape)}: it gives {wanted}")
    outside = (ids < 0) | (ids >= config.vocab_size)
    if outside.any():
        row, position = np.argwhere(outside)[0]
        raise UserError(
            f"tokenize gave the id {ids[row, position]} for caption {row} ({texts[row]!r:.60}): the model knows 0 to "
            f"{config.vocab_size - 1}, and this tokenizer is of another"
        )
    # A tower that reads pads is read at the last position, whatever stands there.
    if config.read_at is ReadAt.END and not config.tower.reads_pads:
        without = ~(ids == config.end_id).any(axis=-1)
        if without.any():
            row = int(without.argmax())
            raise UserError(
                f"tokenize gave no end-of-text token (id {config.end_id}) for caption {row} ({texts[row]!r:.60}): the "
                "model reads a caption's feature there, and this tokenizer is of another, or cuts the end off"
            )
    return ids.astype(np.int32)
