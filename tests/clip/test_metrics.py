"""Every figure of the evaluation against cases worked out by hand."""

import sys

import numpy as np
import pytest

from clip_jax.evaluation.metrics import (
    accuracy,
    classification_metrics,
    eleven_point_map,
    mean_of_top1_and_top5,
    mean_per_class,
    roc_auc,
    top5_accuracy,
)
from clip_jax.evaluation.retrieval import retrieval_recalls
from dalle_jax.errors import UserError


def one_hot(winners, classes):
    return np.eye(classes)[winners]


def test_accuracy_and_mean_per_class():
    labels = np.array([0, 0, 0, 0, 1, 2])
    scores = one_hot([0, 0, 0, 3, 1, 0], 4)
    assert accuracy(labels, scores) == pytest.approx(4 / 6)
    # 3 of 4, 1 of 1 and 0 of 1; class 3 occurs in no label and does not count.
    assert mean_per_class(labels, scores) == pytest.approx((3 / 4 + 1 + 0) / 3)


def test_top5_and_its_mean_with_top1():
    scores = np.array([[9, 8, 7, 6, 5, 4, 3]] * 4, float)
    labels = np.array([0, 4, 5, 1])  # ranks 1, 5, 6 and 2
    assert top5_accuracy(labels, scores) == 3 / 4
    assert mean_of_top1_and_top5(labels, scores) == (1 / 4 + 3 / 4) / 2


def test_roc_auc():
    labels = np.array([1, 0, 1, 0, 0])
    margins = np.array([0.9, 0.8, 0.3, 0.2, 0.1])  # of the six pairs, only 0.3 against 0.8 is wrong
    scores = np.stack([np.full(5, 7.0), 7 + margins], axis=1)
    assert roc_auc(labels, scores) == pytest.approx(5 / 6)


def test_eleven_point_map():
    # Class 0, best first: hit, miss, hit, miss. Precision 1 up to a recall of 1/2 (six points), 2/3 beyond (five).
    first = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    # Class 1: its image is third, so 1/3 everywhere.
    scores = np.array([[4, 3], [3, 1], [2, 2], [1, 0]], float)
    expected = ((6 * 1 + 5 * 2 / 3) / 11 + 1 / 3) / 2
    assert eleven_point_map(first, scores) == pytest.approx(expected)
    never = np.concatenate([first, np.zeros((4, 1), bool)], axis=1)
    assert eleven_point_map(never, np.concatenate([scores, scores[:, :1]], axis=1)) == pytest.approx(expected)


def test_eleven_point_map_reads_decimal_recalls():
    """Ten hits, the third before the only misses: a recall of 3/10 is still reached with precision 1."""
    labels = np.array([1] * 3 + [0] * 7 + [1] * 7, bool)[:, None]
    scores = -np.arange(17.0)[:, None]
    assert eleven_point_map(labels, scores) == pytest.approx((4 * 1 + 7 * 10 / 17) / 11)


def test_what_is_reported():
    labels = np.array([0, 1, 1])
    assert classification_metrics(labels, one_hot([0, 1, 0], 2)) == pytest.approx(
        {"accuracy": 2 / 3, "mean_per_class": 3 / 4, "roc_auc": 3 / 4}
    )
    seven = classification_metrics(labels, one_hot([0, 1, 1], 7))
    assert set(seven) == {"accuracy", "top5_accuracy", "mean_of_top1_and_top5", "mean_per_class"}
    assert classification_metrics(np.ones((2, 3), bool), np.ones((2, 3))) == {"eleven_point_map": 1.0}
    assert "roc_auc" not in classification_metrics(np.zeros(3, int), one_hot([0, 1, 0], 2))
    with pytest.raises(UserError, match="no labelled images"):
        classification_metrics(np.zeros((2, 3), bool), np.ones((2, 3)))


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match=r'pip install "\.\[eval\]" in the clone'):
        accuracy(np.array([0]), np.ones((1, 2)))


def test_retrieval_with_several_captions():
    """Two images of three have captions that win; lengths of features do not count."""
    image = np.float32([[1, 0, 0], [0, 2, 0], [0, 0, 3]])
    text = np.float32([[5, 1, 0], [0, 0, 1], [0, 1, 0.5], [1, 0, 0.1], [0.9, 0, 1], [0, 0.2, 1]])
    owners = np.array([0, 0, 1, 1, 2, 2])
    # Cosines of the captions, by image: 0: .98, 0, 0, .995, .67, 0; 1: .196, 0, .894, 0, 0, .196;
    # 2: 0, 1, .447, .0995, .743, .98. To text: image 0 finds caption 3 of image 1 first, its own second; image 1
    # its own; image 2 caption 1 of image 0 first, its own second.
    found = retrieval_recalls(image, text, owners, ks=(1, 2, 3))
    assert found["text_recall_at_1"] == pytest.approx(1 / 3) and found["text_recall_at_2"] == 1
    # To images: captions 0, 2, 4 and 5 find theirs; 1 scores images 0 and 1 alike behind 2, so its own is last; 3
    # is image 1's and scores 0 there, behind both others.
    assert found["image_recall_at_1"] == pytest.approx(4 / 6)
    assert found["image_recall_at_2"] == pytest.approx(4 / 6) and found["image_recall_at_3"] == 1


def test_retrieval_does_not_reward_a_model_that_tells_nothing_apart():
    same = np.ones((20, 4), np.float32)
    found = retrieval_recalls(same, same, np.arange(20))
    assert set(found.values()) == {0.0}
    broken = np.full((20, 4), np.nan, np.float32)
    assert set(retrieval_recalls(broken, same, np.arange(20)).values()) == {0.0}


def test_retrieval_in_chunks_is_retrieval(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(30, 8)).astype(np.float32)
    owners = np.sort(np.concatenate([np.arange(30), rng.integers(30, size=60)]))
    text = image[owners] + rng.normal(size=(90, 8)).astype(np.float32)
    whole = retrieval_recalls(image, text, owners)
    cosines = (image / np.linalg.norm(image, axis=1)[:, None]) @ (text / np.linalg.norm(text, axis=1)[:, None]).T
    for k in (1, 5, 10):
        best = np.argsort(-cosines, axis=1)[:, :k]
        assert whole[f"text_recall_at_{k}"] == np.mean([(owners[best[i]] == i).any() for i in range(30)])
        best = np.argsort(-cosines, axis=0)[:k]
        assert whole[f"image_recall_at_{k}"] == np.mean([owners[j] in best[:, j] for j in range(90)])
    monkeypatch.setattr("clip_jax.evaluation.retrieval._CHUNK", 7)
    assert retrieval_recalls(image, text, owners) == whole
