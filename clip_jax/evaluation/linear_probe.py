"""Linear probes by the published protocol (Radford et al. 2021, App. A.3).

Logistic regression on features before the projection: scikit-learn's L-BFGS, at most 1000 iterations, everything else
at its default. The strength of the L2 penalty is searched on validation data over 97 values from 1e-6 to 1e6, eight a
decade: seven values two decades apart, then on both sides of the best at half the distance, four times. The probe that
is reported is fitted on training and validation data together. Where the paper is silent: scikit-learn's C is the
inverse of the strength; without a validation split a fifth of each class is held out; of equal results the one nearest
to scikit-learn's default strength, 1, is taken.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from clip_jax.evaluation.metrics import Labels, Marks, Metric, Scores, classification_metrics
from dalle_jax.errors import UserError

MAX_ITERATIONS = 1000

_DECADES, _PER_DECADE = (-6, 6), 8
_LAST = (_DECADES[1] - _DECADES[0]) * _PER_DECADE


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Features of images [n, D] and their labels: int [n], or bool [n, classes] where an image shows several."""

    features: np.ndarray
    labels: np.ndarray

    def __add__(self, other: "Labelled") -> "Labelled":
        pairs = ((self.features, other.features), (self.labels, other.labels))
        return Labelled(*(np.concatenate(pair) for pair in pairs))

    def __getitem__(self, rows: np.ndarray) -> "Labelled":
        return Labelled(self.features[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted probe and how it was found."""

    scores: Scores
    """Of the test images: probabilities of the classes."""
    strength: float
    """Of the L2 penalty."""
    tried: dict[float, float]
    """The validation metric by strength."""
    converged: bool
    """Whether L-BFGS ended before its last iteration."""


def linear_probe(
    train: Labelled, test: Labelled, num_classes: int, metric: Metric, validation: Labelled | None = None
) -> Probe:
    """Fits a probe and lets it judge the test images.

    Args:
      train, test: features and labels.
      num_classes: of the data set; training data need not show them all.
      metric: what the penalty is chosen by.
      validation: None: a fifth of each class of `train`.

    Raises:
      UserError: scikit-learn is not installed, there is too little to hold out, or what is held out cannot be judged.
    """
    if validation is None:
        held_out = validation_rows(train.labels)
        train, validation = train[~held_out], train[held_out]
    known = validation

    def judge(strength: float) -> float:
        scores, _ = fit(train, known.features, num_classes, strength)
        figures = classification_metrics(known.labels, scores)
        if metric.value not in figures:
            raise UserError(f"the validation images cannot be judged by {metric.value}: they do not show every class")
        return figures[metric.value]

    strength, tried = search(judge)
    scores, converged = fit(train + validation, test.features, num_classes, strength)
    return Probe(scores, strength, tried, converged)


def search(judge: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The strength with the highest result, and all results by strength."""
    results: dict[int, float] = {}

    def best_of(positions) -> int:
        for i in positions:
            if 0 <= i <= _LAST and i not in results:
                results[i] = judge(_strength(i))
        return max(results, key=lambda i: (results[i], -abs(i - _LAST // 2)))

    step = 2 * _PER_DECADE
    peak = best_of(range(0, _LAST + 1, step))
    while step > 1:
        step //= 2
        peak = best_of((peak - step, peak + step))
    return _strength(peak), {_strength(i): results[i] for i in sorted(results)}


def _strength(position: int) -> float:
    return float(10.0 ** (_DECADES[0] + position / _PER_DECADE))


def fit(data: Labelled, features: Float[np.ndarray, "n D"], num_classes: int, strength: float) -> tuple[Scores, bool]:
    """Fits on `data`; returns probabilities [n, classes] of `features`, and whether the fit converged."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
    except ImportError:
        raise UserError('linear probes need scikit-learn: pip install ".[eval]" in the clone') from None
    if data.labels.ndim == 1 and len(np.unique(data.labels)) < 2:
        raise UserError("the images to fit a linear probe on are all of one class: it needs two at least")
    labels = data.labels.astype(np.int64)
    if labels.ndim == 2 and num_classes == 1:  # to scikit-learn a column alone is one of two classes an image
        labels = np.concatenate([labels, 1 - labels], axis=1)
    model: Any = LogisticRegression(C=1 / strength, max_iter=MAX_ITERATIONS)
    if data.labels.ndim == 2:
        model = OneVsRestClassifier(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the result
        warnings.filterwarnings("ignore", message="Label .* is present in all|not present in all")
        model.fit(data.features, labels)
    parts = [model] if data.labels.ndim == 1 else model.estimators_
    converged = all(np.max(getattr(part, "n_iter_", 0)) < MAX_ITERATIONS for part in parts)
    scores = np.zeros((len(features), num_classes if labels.ndim == 1 else labels.shape[1]))
    scores[:, model.classes_] = model.predict_proba(features)
    return scores[:, :num_classes], converged


def validation_rows(labels: Labels | Marks, share: float = 0.2, seed: int = 0) -> Bool[np.ndarray, " n"]:
    """Which rows to hold out: a share of each class (of all rows, where an image shows several), drawn at random.

    Raises:
      UserError: no class has enough images.
    """
    rng, held_out = np.random.default_rng(seed), np.zeros(len(labels), bool)
    groups = [labels == c for c in np.unique(labels)] if labels.ndim == 1 else [np.ones(len(labels), bool)]
    for group in groups:
        rows = rng.permutation(np.flatnonzero(group))
        held_out[rows[: int(share * len(rows))]] = True
    if not held_out.any():
        raise UserError(f"too few images to hold out {share:.0%} of each class: name a validation split")
    return held_out
