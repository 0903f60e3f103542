"""The judge: right about drawn scenes, at chance about other captions, and worse where an image is worse."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dalle_jax.data.shapes import scenes
from dalle_jax.data.shapes.judge import ATTRIBUTES, CHANCE, NONE, accuracy, judge

NUM_SCENES = 200


def drawn(num_objects, image_size=64):
    rng = np.random.default_rng(num_objects)
    wanted = [scenes.random_scene(rng, unseen=i % 4 == 0, num_objects=num_objects) for i in range(NUM_SCENES)]
    return np.stack([scenes.draw(scene, image_size, rng) for scene in wanted]), wanted


@pytest.fixture(scope="module")
def single():
    return drawn(1)


def by_attribute(images, wanted):
    return dict(zip(ATTRIBUTES, accuracy(images, wanted).mean(axis=0), strict=True))


def blur(images, sigma):
    return np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(sigma))) for i in images])


@pytest.mark.parametrize(("num_objects", "image_size"), [(1, 64), (1, 128), (1, 100), (2, 64)])
def test_drawn_scenes_are_read_back(num_objects, image_size):
    assert min(by_attribute(*drawn(num_objects, image_size)).values()) >= 0.99


def test_shuffled_captions_are_at_chance(single):
    images, wanted = single
    rng = np.random.default_rng(0)
    shuffles = [by_attribute(images[rng.permutation(NUM_SCENES)], wanted) for _ in range(3)]
    for name in ATTRIBUTES:
        assert abs(np.mean([shuffle[name] for shuffle in shuffles]) - CHANCE[name]) < 0.08, name


def test_mild_faults_of_a_codec_are_forgiven(single):
    images, wanted = single
    noisy = blur(images, 1) + np.random.default_rng(0).normal(0, 10, images.shape)
    assert min(by_attribute(noisy.clip(0, 255).astype(np.uint8), wanted).values()) >= 0.95


def test_blur_hides_shapes(single):
    images, wanted = single
    shape = [by_attribute(blur(images, sigma), wanted)["shape"] for sigma in (1, 2, 4)]
    assert shape[0] > shape[1] > shape[2] and shape[2] < 0.4


def test_another_hue_is_another_color(single):
    images, wanted = single
    hsv = np.stack([np.asarray(Image.fromarray(image).convert("HSV")) for image in images])
    hsv[..., 0] += 64
    shifted = np.stack([np.asarray(Image.fromarray(image, "HSV").convert("RGB")) for image in hsv])
    found = by_attribute(shifted, wanted)
    assert found["color"] < 0.1 and found["shape"] > 0.9


def test_another_place_is_seen(single):
    images, wanted = single
    found = by_attribute(np.roll(images, 12, axis=2), wanted)
    assert found["place"] < 0.1 and found["color"] > 0.9


def test_a_second_object_in_place_of_one_does_not_pass():
    images, wanted = drawn(2)
    same_size = [i for i, scene in enumerate(wanted) if len({thing.size for thing in scene.objects}) == 1]
    first = [dataclasses.replace(wanted[i], objects=wanted[i].objects[:1]) for i in same_size]
    assert accuracy(images[same_size], first)[:, 1:].mean() < 0.75


@pytest.mark.parametrize("size", [1, 7, 64])
def test_nothing_is_none(size):
    noise = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    for image in (*noise, np.zeros_like(noise[0]), np.full_like(noise[0], 246)):
        for num_objects in (1, 2):
            (seen,) = judge(image[None], num_objects)
            assert len(seen.objects) == num_objects
            if size != 7:  # a few large blocks of colour may pass for anything
                assert seen.objects[0] == scenes.Object(NONE, NONE, NONE, NONE)
    assert judge(np.full((1, 64, 64, 3), 246, np.uint8))[0].background == "white"


def test_clutter_is_none():
    rng = np.random.default_rng(0)
    clutter = np.full((20, 64, 64, 3), 246, np.uint8)
    for image in clutter:
        for y, x in rng.integers(0, 15, (60, 2)):
            image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = rng.integers(0, 256, 3)
    assert all(scene.objects[0].shape == NONE for scene in judge(clutter))


def test_a_background_must_cover_the_picture():
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    assert all(scene.background == NONE for scene in judge(noise)), "the mean of noise is gray"


def test_a_background_of_no_known_color_is_none():
    assert judge(np.full((1, 64, 64, 3), (255, 0, 0), np.uint8))[0].background == NONE
