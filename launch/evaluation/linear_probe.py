"""Linear probes of a data set (Radford et al. 2021, App. A.3); `clip_jax.evaluation.linear_probe` has the protocol."""

from typing import Any

from clip_jax import Clip
from clip_jax.evaluation.features import Encoded, encode_source, label_array
from clip_jax.evaluation.linear_probe import Labelled, linear_probe
from dalle_jax.data.records import Source
from dalle_jax.errors import UserError
from launch.evaluation import classification
from launch.evaluation.class_names import labelled_alike
from launch.evaluation.datasets import DataFlags, find_prompts, open_split


def evaluate(
    clip: Clip, data: str, split: str, flags: DataFlags, train_split: str = "train", validation_split: str = ""
) -> dict[str, Any]:
    """One line of the table. Prompts are asked for what the classes are and how the data set is judged.

    Raises:
      NotApplicable: there are no labels.
      UserError: the data or the names of their classes cannot be read, or do not belong together; or two splits are
        the same images, or of other classes.
    """
    source = open_split(data, split, flags, labelled=True)
    classification.require_labels(source)
    named = {"split": split, "train_split": train_split, "validation_split": validation_split}
    parts = {
        flag: source if flag == "split" else open_split(data, name, flags, labelled=True)
        for flag, name in named.items()
        if name
    }
    _check_apart(data, parts)
    parts = labelled_alike(data, parts)
    prompts = find_prompts(data, parts["split"], flags, templates=False)

    def read(part: Source) -> tuple[Encoded, Labelled]:
        encoded = encode_source(clip.probe_features, part, clip.config.vision)
        return encoded, Labelled(encoded.features, label_array(encoded.records, len(prompts.classes), part.name))

    encoded, test = read(parts["split"])
    train = read(parts["train_split"])[1]
    validation = read(parts["validation_split"])[1] if validation_split else None
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


def _check_apart(data: str, parts: dict[str, Source]) -> None:
    """A probe that is fitted, or whose penalty is chosen, on what it is measured on says nothing."""
    seen: dict[str, str] = {}
    for flag, part in parts.items():
        other = seen.setdefault(part.fingerprint(), flag)
        if other != flag:
            raise UserError(
                f"--{other} and --{flag} of {data} are the same images, {part.name}: a linear probe needs them apart "
                "(a folder for each split, {split} in the path of tars, or the splits of a TFDS name)"
            )
