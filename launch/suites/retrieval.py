"""Retrieval of captions by pictures and of pictures by captions (Radford et al. 2021, App. E.1)."""

from typing import Any

import numpy as np

from clip_jax import Clip
from clip_jax.features import encode_source
from clip_jax.retrieval import retrieval_recalls
from dalle_jax.errors import UserError
from launch.eval_data import DataFlags, open_split


def evaluate(clip: Clip, data: str, split: str, flags: DataFlags, prefix: str = "") -> dict[str, Any]:
    """One line of the table. Pictures without a caption are left out.

    Args:
      clip: the model.
      data, split, flags: see `open_split`.
      prefix: put before every caption; the paper's is `a photo of `.
    """
    source = open_split(data, split, flags, labelled=False)
    encoded = encode_source(clip.encode_image, source, clip.config.vision)
    rows = np.flatnonzero([bool(record.captions) for record in encoded.records])
    if not len(rows):
        raise UserError(f"{source.name} has no captions: retrieval needs them (--caption_field names their field)")
    captions = [encoded.records[row].captions for row in rows]
    owners = np.repeat(np.arange(len(rows)), [len(several) for several in captions])
    text = clip.encode_text([prefix + caption for several in captions for caption in several])
    return {
        "data": data,
        "split": split,
        "pictures": len(rows),
        "captions": len(owners),
        "skipped": encoded.skipped,
        "without_caption": len(encoded.records) - len(rows),
        **retrieval_recalls(encoded.features[rows], text, owners),
    }
