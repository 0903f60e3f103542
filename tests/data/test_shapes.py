"""The drawn scenes: what is drawn, what is said of it, what training never sees, and how it is stored."""

import dataclasses
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data import shapes
from dalle_jax.data.config import ShapesConfig
from dalle_jax.data.shapes import scenes
from dalle_jax.errors import UserError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return ShapesConfig(str(tmp_path_factory.mktemp("shapes")), num_train=300, num_eval=120, max_objects=2)


@pytest.fixture(scope="module")
def splits(config):
    return {split: shapes.source(config, split) for split in ("train", "eval", "unseen")}


def pairs_in(source):
    """(colour, shape) of every object in every caption."""
    found = set()
    for i in range(len(source)):
        words = source[i].captions[0].split()
        found |= {(a, b) for a, b in zip(words, words[1:], strict=False) if a in scenes.COLORS and b in scenes.SHAPES}
    return found


def test_unseen_pairs_are_absent_from_training(splits):
    assert len(scenes.UNSEEN_PAIRS) == round(0.15 * 48)
    assert pairs_in(splits["unseen"]) == scenes.UNSEEN_PAIRS
    assert not pairs_in(splits["train"]) & scenes.UNSEEN_PAIRS
    assert not pairs_in(splits["eval"]) & scenes.UNSEEN_PAIRS


def test_every_color_and_shape_is_trained_on():
    seen = [(c, s) for c in scenes.COLORS for s in scenes.SHAPES if (c, s) not in scenes.UNSEEN_PAIRS]
    for i, names in enumerate((scenes.COLORS, scenes.SHAPES)):
        assert all(sum(pair[i] == name for pair in seen) >= 5 for name in names)


def test_enough_of_everything():
    sizes = [len(t) for t in (scenes.COLORS, scenes.SHAPES, scenes.SIZES, scenes.PLACES, scenes.BACKGROUNDS)]
    assert sizes == [8, 6, 2, 5, 4]


@pytest.mark.parametrize("num_objects", [1, 2])
def test_captions_name_every_attribute(num_objects):
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = scenes.random_scene(rng, num_objects=num_objects)
        texts = scenes.captions(scene)
        assert len(set(texts)) >= 4
        for text in texts:
            assert scene.background in text
            for thing in scene.objects:
                assert all(word in text for word in dataclasses.astuple(thing))


def test_objects_touch_neither_each_other_nor_the_border():
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = scenes.random_scene(rng, num_objects=2)
        large = tuple(dataclasses.replace(thing, size="large", shape="square") for thing in scene.objects)
        image = scenes.draw(dataclasses.replace(scene, objects=large), 64, rng).astype(int)
        drawn = np.abs(image - scenes.BACKGROUNDS[scene.background]).sum(-1) > 0
        assert not drawn[[0, -1]].any() and not drawn[:, [0, -1]].any()
        halves = (drawn[31:33].any(0) & drawn[:31].any(0) & drawn[33:].any(0)).sum()
        assert drawn.any() and halves == 0


def test_jitter_varies_a_picture_and_a_seed_repeats_it():
    scene = scenes.random_scene(np.random.default_rng(2))
    draws = [scenes.draw(scene, 64, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.any(draws[0] != draws[2])


def test_records(splits, config):
    source = splits["train"]
    assert len(source) == config.num_train
    record = source[7]
    image = np.asarray(Image.open(io.BytesIO(record.image)))
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert len(record.captions) >= 4 and record.key == source.key(7)
    assert len({source.key(i) for i in range(len(source))}) == len(source)
    assert {len(source[i].captions) for i in range(50)} == {4, 6}, "scenes of one and of two objects"


def test_pickled_source_reads_the_same(splits):
    source = splits["eval"]
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_seed_decides_the_scenes(config, splits, tmp_path):
    again = shapes.source(dataclasses.replace(config, data_dir=str(tmp_path / "again")), "eval")
    other = shapes.source(dataclasses.replace(config, seed=1, data_dir=str(tmp_path / "other")), "eval")
    assert [again[i] for i in range(10)] == [splits["eval"][i] for i in range(10)]
    assert [other[i].image for i in range(10)] != [again[i].image for i in range(10)]


@pytest.mark.parametrize("image_size", [64, 96])
def test_image_size(image_size, tmp_path):
    source = shapes.source(ShapesConfig(str(tmp_path), num_train=2, num_eval=1, image_size=image_size), "train")
    assert Image.open(io.BytesIO(source[0].image)).size == (image_size, image_size)


def test_prepared_once_by_two_processes_and_without_tensorflow(tmp_path):
    code = (
        "import sys; from dalle_jax.data import shapes; from dalle_jax.data.config import ShapesConfig;"
        f"print(shapes.source(ShapesConfig({str(tmp_path)!r}, num_train=200, num_eval=20), 'train')[9].captions);"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1] != b""
    assert not list(tmp_path.glob("*/*/incomplete*"))


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({}, "unsen", "did you mean 'unseen'"),
        ({"image_size": 32}, "train", "64 or more"),
        ({"max_objects": 3}, "train", "1 or 2"),
        ({"num_train": 0}, "train", "at least 1"),
        ({"data_dir": "/dev/null/shapes"}, "train", "set data.shapes.data_dir"),
    ],
)
def test_mistakes(config, change, split, message):
    with pytest.raises(UserError, match=message):
        shapes.source(dataclasses.replace(config, **change), split)
