"""The published protocol: which penalties are tried, what is fitted on what, and probes that learn."""

import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clip_jax.evaluation import linear_probe as module
from clip_jax.evaluation.linear_probe import Labelled, fit, linear_probe, search, validation_rows
from clip_jax.evaluation.metrics import Metric
from dalle_jax.errors import UserError


def test_the_search_by_hand():
    """The best of the grid at 10^1.375: seven values first, then on both sides of the best at half the distance."""
    tried = []

    def judge(strength):
        tried.append(round(np.log10(strength), 3))
        return -abs(np.log10(strength) - 1.4)

    strength, results = search(judge)
    assert np.log10(strength) == pytest.approx(1.375) and len(results) == len(tried) == 15
    assert tried[:7] == [-6, -4, -2, 0, 2, 4, 6]
    assert tried[7:] == [1, 3, 0.5, 1.5, 1.25, 1.75, 1.375, 1.625]
    assert list(results) == sorted(results)


@pytest.mark.parametrize(("end", "tries"), [(-6, 11), (6, 11)])
def test_the_search_stays_within_its_ends(end, tries):
    strength, results = search(lambda strength: end * np.log10(strength))
    assert np.log10(strength) == pytest.approx(end) and len(results) == tries


def test_of_equal_results_the_one_nearest_to_the_default():
    assert search(lambda strength: 1.0)[0] == pytest.approx(1)
    assert search(lambda strength: float(strength < 1e-3))[0] == pytest.approx(10 ** (-3 - 1 / 8))


def blobs(rng, count, classes=3, dim=6):
    """Clusters that a linear classifier tells apart but for noise."""
    labels = rng.integers(classes, size=count)
    centers = np.random.default_rng(7).normal(size=(classes, dim))
    return Labelled((centers[labels] + 0.5 * rng.normal(size=(count, dim))).astype(np.float32), labels)


def test_the_probe_is_fitted_on_training_and_validation_data():
    rng = np.random.default_rng(0)
    train, validation, test = (blobs(rng, count) for count in (60, 40, 50))
    probe = linear_probe(train, test, 3, Metric.ACCURACY, validation)
    both = train + validation
    model = LogisticRegression(C=1 / probe.strength, max_iter=1000).fit(both.features, both.labels)
    np.testing.assert_allclose(probe.scores, model.predict_proba(test.features), atol=1e-6)
    # The penalty was judged by probes that had not seen the validation data.
    alone = LogisticRegression(C=1 / probe.strength, max_iter=1000).fit(train.features, train.labels)
    assert probe.tried[probe.strength] == alone.score(validation.features, validation.labels)
    assert probe.tried[probe.strength] == max(probe.tried.values()) and probe.converged
    assert np.mean(probe.scores.argmax(1) == test.labels) > 0.8


def test_several_classes_of_a_picture_and_classes_never_seen():
    rng = np.random.default_rng(0)
    data = blobs(rng, 120)
    marks = np.zeros((120, 4), bool)
    marks[:, :3] = np.eye(3, dtype=bool)[data.labels]
    marks[:, 0] |= data.labels == 1
    many = Labelled(data.features, marks)
    probe = linear_probe(many[np.arange(80)], many[np.arange(80, 120)], 4, Metric.ELEVEN_POINT_MAP)
    assert probe.scores.shape == (40, 4) and np.isfinite(probe.scores).all()
    assert ((probe.scores[:, 0] > 0.5) == marks[80:, 0]).mean() > 0.8
    gap = Labelled(data.features, data.labels * 2)  # classes 0, 2 and 4 of 6
    scores, _ = fit(gap, gap.features, 6, 1.0)
    assert scores.shape == (120, 6) and not scores[:, [1, 3, 5]].any()
    assert np.mean(scores.argmax(1) == gap.labels) > 0.8


def test_one_class_that_a_picture_shows_or_not():
    """As of the first of several, whose probes know nothing of one another."""
    data = blobs(np.random.default_rng(0), 120)
    marks = np.eye(3, dtype=bool)[data.labels]
    one, several = (Labelled(data.features, part) for part in (marks[:, :1], marks))
    scores, converged = fit(one, one.features, 1, 1.0)
    assert scores.shape == (120, 1) and converged
    np.testing.assert_allclose(scores[:, 0], fit(several, several.features, 3, 1.0)[0][:, 0], atol=1e-6)
    probe = linear_probe(one[np.arange(80)], one[np.arange(80, 120)], 1, Metric.ELEVEN_POINT_MAP)
    assert ((probe.scores[:, 0] > 0.5) == marks[80:, 0]).mean() > 0.8
    always = Labelled(data.features, np.ones((120, 1), bool))
    assert (fit(always, data.features, 1, 1.0)[0] == 1).all()


def test_validation_rows_are_a_fifth_of_each_class():
    labels = np.repeat([0, 1, 2], [50, 10, 3])
    held_out = validation_rows(labels)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [10, 2, 0]
    assert (validation_rows(labels) == held_out).all() and not held_out[:10].all()
    assert validation_rows(np.ones((20, 3), bool)).sum() == 4
    with pytest.raises(UserError, match="too few images"):
        validation_rows(np.arange(4))


def test_data_that_a_probe_cannot_learn_or_be_judged_by():
    data = blobs(np.random.default_rng(0), 60, classes=2)
    one = data[data.labels == 0]
    with pytest.raises(UserError, match="all of one class"):
        linear_probe(one, data, 2, Metric.ACCURACY, data)
    with pytest.raises(UserError, match="cannot be judged by roc_auc"):
        linear_probe(data, data, 2, Metric.ROC_AUC, one)


def test_a_fit_that_does_not_converge_is_said_so(monkeypatch):
    monkeypatch.setattr(module, "MAX_ITERATIONS", 2)
    data = blobs(np.random.default_rng(0), 60)
    assert not fit(data, data.features, 3, 1e-6)[1]


def test_without_scikit_learn(monkeypatch):
    for name in ("sklearn", "sklearn.exceptions", "sklearn.linear_model", "sklearn.multiclass"):
        monkeypatch.setitem(sys.modules, name, None)
    data = blobs(np.random.default_rng(0), 6)
    with pytest.raises(UserError, match=r'pip install "\.\[eval\]" in the clone'):
        fit(data, data.features, 3, 1.0)
