"""Zero-shot classification of a data set by prompts (Radford et al. 2021, §3.1)."""

from typing import Any

from clip_jax import Clip
from clip_jax.evaluation.features import encode_source, label_array
from clip_jax.evaluation.zero_shot import class_cosines
from launch.evaluation import classification
from launch.evaluation.datasets import DataFlags, find_prompts, open_split


def evaluate(clip: Clip, data: str, split: str, flags: DataFlags) -> dict[str, Any]:
    """One line of the table; images with several classes are ranked by cosine, as all others are.

    Raises:
      NotApplicable: there are no labels.
      UserError: the data or their prompts cannot be read, or do not belong together.
    """
    source = open_split(data, split, flags, labelled=True)
    classification.require_labels(source)
    prompts = find_prompts(data, source, flags)
    encoded = encode_source(clip.encode_image, source, clip.config.vision)
    labels = label_array(encoded.records, len(prompts.classes), source.name)
    scores = class_cosines(encoded.features, clip.class_directions(prompts.classes, prompts.templates))
    row = classification.row(data, split, prompts, encoded, labels, scores)
    return row | {"templates": len(prompts.templates)}
