"""Linear probes of a data set (Radford et al. 2021, App. A.3); `clip_jax.linear_probe` has the protocol."""

from typing import Any

from clip_jax import Clip
from clip_jax.features import Encoded, encode_source, label_array
from clip_jax.linear_probe import Labelled, linear_probe
from launch.eval_data import DataFlags, find_prompts, open_split
from launch.suites import classification


def evaluate(
    clip: Clip, data: str, split: str, flags: DataFlags, train_split: str = "train", validation_split: str = ""
) -> dict[str, Any]:
    """One line of the table. Prompts are asked for what the classes are and how the data set is judged.

    Raises:
      NotApplicable: there are no labels.
      UserError: the data or the names of their classes cannot be read, or do not belong together.
    """
    source = open_split(data, split, flags, labelled=True)
    classification.require_labels(source)
    prompts = find_prompts(data, source, flags, templates=False)

    def read(name: str) -> tuple[Encoded, Labelled]:
        part = open_split(data, name, flags, labelled=True)
        encoded = encode_source(clip.probe_features, part, clip.config.vision)
        return encoded, Labelled(encoded.features, label_array(encoded.records, len(prompts.classes), part.name))

    encoded, test = read(split)
    train = read(train_split)[1]
    validation = read(validation_split)[1] if validation_split else None
    metric = classification.main_metric(prompts, test.labels)
    probe = linear_probe(train, test, len(prompts.classes), metric, validation)
    row = classification.row(data, split, prompts, encoded, test.labels, probe.scores)
    return row | {
        "train_split": train_split,
        "train_pictures": len(train.labels),
        "l2_strength": probe.strength,
        "converged": probe.converged,
        "validation": {f"{strength:.3g}": result for strength, result in probe.tried.items()},
    }
