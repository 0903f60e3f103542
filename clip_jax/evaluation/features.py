"""Features of a whole data set, with the labels and captions that stand beside them."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from clip_jax.config import VisionConfig
from clip_jax.evaluation.metrics import Labels, Marks
from dalle_jax.data.config import DataConfig
from dalle_jax.data.images.decode import decode
from dalle_jax.data.images.transforms import inference_transform
from dalle_jax.data.records import BadSample, Record, Source
from dalle_jax.errors import UserError

_AT_ONCE = 1024  # images in memory


class Encoded(NamedTuple):
    """What is known of a data set once its images are encoded."""

    features: Float[np.ndarray, "n D"]
    records: list[Record]
    """Without their images."""
    skipped: int
    """Samples that could not be read, and are missing here."""


def encode_source(
    encode: Callable[[np.ndarray], np.ndarray | jax.Array], source: Source, vision: VisionConfig
) -> Encoded:
    """Reads all images of a source as a model does at inference and encodes them, in order.

    Args:
      encode: uint8 [B, image_size, image_size, 3] to features, such as `Clip.encode_image`.
      source: which images.
      vision: the model's sizes and preprocessing.

    Raises:
      UserError: no image can be read.
    """
    transform = inference_transform(vision.preprocessing, vision.image_size, vision.resizing)

    def read(index: int) -> tuple[np.ndarray, Record] | None:
        try:
            record = source[index]
            image = decode(record.image, max_pixels=DataConfig.max_pixels)
        except BadSample:
            return None
        return transform(image), dataclasses.replace(record, image=b"")

    features, records = [], []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(source), _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, len(source)))
            found = [sample for sample in pool.map(read, indices) if sample is not None]
            if found:
                features.append(np.asarray(encode(np.stack([image for image, _ in found]))))
                records += [record for _, record in found]
    if not records:
        raise UserError(f"none of the {len(source)} images of {source.name} can be read")
    return Encoded(np.concatenate(features), records, len(source) - len(records))


def label_array(records: Sequence[Record], num_classes: int, where: str) -> Labels | Marks:
    """The labels of records: int [n], or bool [n, classes] where they note every class of an image.

    Raises:
      UserError: naming the sample, where one has no label, or one that is not a class.
    """
    several = records[0].label is None and records[0].labels is not None
    marks = np.zeros((len(records), num_classes), bool)
    for row, record in zip(marks, records, strict=True):
        labels = record.labels if several else None if record.label is None else (record.label,)
        if labels is None:
            raise UserError(f"sample {record.key} of {where} has no label: classification needs labelled data")
        wrong = [label for label in labels if not 0 <= label < num_classes]
        if wrong:
            raise UserError(
                f"sample {record.key} of {where} has the label {wrong[0]}, and there are {num_classes} class names: "
                "name the prompts that belong to the data"
            )
        row[list(labels)] = True
    return marks if several else marks.argmax(axis=1)
