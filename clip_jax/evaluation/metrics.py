"""The figures of CLIP's evaluation (Radford et al. 2021, Table 9), scikit-learn's where it has them.

`labels` are int [n], or bool [n, classes] where an image shows several; `scores` are any numbers that rank classes.
"""

import enum
from collections.abc import Callable
from types import ModuleType

import numpy as np
from jaxtyping import Bool, Float, Int

from dalle_jax.errors import UserError

Labels = Int[np.ndarray, " n"]
Marks = Bool[np.ndarray, "n classes"]
Scores = Float[np.ndarray, "n classes"]

RECALLS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Where PASCAL VOC 2007 reads the curve of precision over recall."""


class Metric(enum.Enum):
    """What a data set of the paper is judged by."""

    ACCURACY = "accuracy"
    MEAN_PER_CLASS = "mean_per_class"
    ELEVEN_POINT_MAP = "eleven_point_map"
    ROC_AUC = "roc_auc"
    TOP1_TOP5 = "mean_of_top1_and_top5"


def accuracy(labels: Labels, scores: Scores) -> float:
    """Share of images whose highest score is their class's."""
    return float(sklearn_metrics().accuracy_score(labels, scores.argmax(axis=-1)))


def top5_accuracy(labels: Labels, scores: Scores) -> float:
    """Share of images whose class is among the five highest scores."""
    classes = np.arange(scores.shape[1])
    return float(sklearn_metrics().top_k_accuracy_score(labels, scores, k=5, labels=classes))


def mean_per_class(labels: Labels, scores: Scores) -> float:
    """Mean over the classes that occur of the share of their images that are recognised."""
    present = np.unique(labels)
    return float(sklearn_metrics().recall_score(labels, scores.argmax(axis=-1), labels=present, average="macro"))


def mean_of_top1_and_top5(labels: Labels, scores: Scores) -> float:
    """What Kinetics reports."""
    return (accuracy(labels, scores) + top5_accuracy(labels, scores)) / 2


def roc_auc(labels: Labels, scores: Float[np.ndarray, "n 2"]) -> float:
    """Area under the curve of hits over false alarms, of class 1 against class 0."""
    return float(sklearn_metrics().roc_auc_score(labels, scores[:, 1] - scores[:, 0]))


def eleven_point_map(labels: Marks, scores: Scores) -> float:
    """PASCAL VOC 2007's: at each of eleven recalls the best precision from there on, averaged, then over classes.

    Classes without any image are left out.
    """
    present = np.flatnonzero(labels.any(axis=0))
    return float(np.mean([_eleven_point_precision(labels[:, c], scores[:, c]) for c in present]))


def _eleven_point_precision(labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    hits = np.cumsum(labels[np.argsort(-scores, kind="stable")])
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / hits[-1]
    return float(np.mean([precision[recall >= point].max() for point in RECALLS]))


def classification_metrics(labels: Labels | Marks, scores: Scores) -> dict[str, float]:
    """Every figure that the labels allow, by its name.

    Raises:
      UserError: scikit-learn is not installed, or there is nothing to judge.
    """
    if not len(labels) or not labels.any() and labels.ndim == 2:
        raise UserError("there are no labelled images to judge")
    if labels.ndim == 2:
        return {Metric.ELEVEN_POINT_MAP.value: eleven_point_map(labels, scores)}
    figures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy}
    if scores.shape[1] > 5:
        figures |= {"top5_accuracy": top5_accuracy, Metric.TOP1_TOP5.value: mean_of_top1_and_top5}
    figures["mean_per_class"] = mean_per_class
    if scores.shape[1] == 2 and len(np.unique(labels)) == 2:
        figures["roc_auc"] = roc_auc
    return {name: figure(labels, scores) for name, figure in figures.items()}


def sklearn_metrics() -> ModuleType:
    """scikit-learn's metrics.

    Raises:
      UserError: it is not installed.
    """
    try:
        import sklearn.metrics
    except ImportError:
        raise UserError('evaluation needs scikit-learn: pip install ".[eval]" in the clone') from None
    return sklearn.metrics
