"""Retrieval of captions by images and of images by captions (Radford et al. 2021, App. E.1)."""

from typing import Any

import numpy as np

from clip_jax import Clip
from clip_jax.evaluation.features import encode_source
from clip_jax.evaluation.retrieval import retrieval_recalls
from dalle_jax.data.records import BadSample, Source
from dalle_jax.errors import UserError
from launch.evaluation.datasets import DataFlags, open_split
from launch.evaluation.results import NotApplicable


def evaluate(clip: Clip, data: str, split: str, flags: DataFlags, prefix: str = "") -> dict[str, Any]:
    """One line of the table. Images without a caption are left out.

    Args:
      clip: the model.
      data, split, flags: see `open_split`.
      prefix: put before every caption; the paper's is `a photo of `.

    Raises:
      NotApplicable: there is no caption.
      UserError: the data cannot be read.
    """
    source = open_split(data, split, flags, labelled=False)
    if not any(_captions(source, index) for index in range(len(source))):  # before images are encoded for nothing
        raise NotApplicable(f"{source.name} has no captions: retrieval needs them (--caption_field names their field)")
    encoded = encode_source(clip.encode_image, source, clip.config.vision)
    rows = np.flatnonzero([bool(record.captions) for record in encoded.records])
    if not len(rows):
        raise UserError(f"{source.name}: none of the images with captions can be read")
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


def _captions(source: Source, index: int) -> tuple[str, ...]:
    try:
        return source.captions(index)
    except BadSample:
        return ()
