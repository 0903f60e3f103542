"""What zero-shot classification and linear probes report alike."""

from typing import Any

import numpy as np

from clip_jax.evaluation.features import Encoded
from clip_jax.evaluation.metrics import Metric, classification_metrics
from clip_jax.evaluation.prompts import Prompts
from dalle_jax.data.records import BadSample, Source
from dalle_jax.errors import UserError
from launch.evaluation.results import NotApplicable


def require_labels(source: Source) -> None:
    """Asks the first sample that can be read, before images are encoded for nothing.

    Raises:
      NotApplicable: it has no label.
      UserError: it has several, and none is chosen.
    """
    choices = getattr(source, "label_choices", ())  # of TFDS
    if choices:
        raise UserError(f"{source.name} has several labels ({', '.join(choices)}): choose one with --label_field")
    for index in range(0 if source.has_labels else len(source)):
        try:
            record = source[index]
        except BadSample:
            continue
        if record.label is None and record.labels is None:
            raise NotApplicable(f"{source.name} has no labels: classification needs them")
        return


def row(data: str, split: str, prompts: Prompts, encoded: Encoded, labels: np.ndarray, scores: np.ndarray) -> dict:
    """One line of the table: the data set's own metric first, then every other."""
    figures = classification_metrics(labels, scores)
    metric = main_metric(prompts, labels)
    found: dict[str, Any] = {
        "data": data,
        "split": split,
        "prompts": prompts.name,
        "classes": len(prompts.classes),
        "pictures": len(encoded.records),
        "skipped": encoded.skipped,
        "metric": metric.value,
        "result": figures[metric.value],
    }
    return found | figures


def main_metric(prompts: Prompts, labels: np.ndarray) -> Metric:
    """What the data set is judged by, as far as its labels allow."""
    if labels.ndim == 2:
        return Metric.ELEVEN_POINT_MAP
    if prompts.metric is Metric.ELEVEN_POINT_MAP:
        return Metric.ACCURACY
    if prompts.metric is Metric.ROC_AUC and (len(prompts.classes) != 2 or len(np.unique(labels)) != 2):
        return Metric.ACCURACY
    if prompts.metric is Metric.TOP1_TOP5 and len(prompts.classes) <= 5:
        return Metric.ACCURACY
    return prompts.metric
