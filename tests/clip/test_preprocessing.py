"""Image processors of folders: every setting is applied, written back, or refused by its name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax import Clip, ClipConfig, TextConfig, VisionConfig, VisionTower, tower_config
from clip_jax.model import abstract_variables
from clip_jax.preprocessing.hf import CLIP, SIGLIP, images_from_hf, preprocessor_to_hf, read_preprocessor
from clip_jax.preprocessing.images import preprocess, preprocess_on_device
from clip_jax.preprocessing.open_clip import images_from_open_clip, images_to_open_clip
from clip_jax.towers.vit import normalize_pixels
from configs.clip_finetune import augment_of
from dalle_jax.data.config import Augment, Resample, Resizing
from dalle_jax.data.images.transforms import make_transform
from dalle_jax.errors import UserError
from dalle_jax.training.trees import unbox
from tests.clip.small_clip import CONFIG, tokenize

SIZE = 32
VISION = VisionConfig(SIZE, 16, tower_config(1, 64))
STATED = preprocessor_to_hf(VISION, CLIP)
PICTURE = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)


def read(change=None, usual=CLIP):
    return dataclasses.replace(VISION, **images_from_hf(STATED | (change or {}), SIZE, usual, "folder"))


def resized(width, height, filter_):
    return np.asarray(Image.fromarray(PICTURE).resize((width, height), Image.Resampling[filter_]))


BY_HAND = {
    "bilinear": ({"resample": 2}, resized(49, 32, "BILINEAR")[:, 8:40]),
    "by name": ({"resample": "InterpolationMode.BILINEAR"}, resized(49, 32, "BILINEAR")[:, 8:40]),
    "lanczos": ({"resample": 1}, resized(49, 32, "LANCZOS")[:, 8:40]),
    "nearest": ({"resample": 0}, resized(49, 32, "NEAREST")[:, 8:40]),
    "squeezed": ({"do_center_crop": False, "size": {"height": 32, "width": 32}}, resized(32, 32, "BICUBIC")),
    "squeezed as a list": ({"do_center_crop": False, "size": [32, 32]}, resized(32, 32, "BICUBIC")),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_images_come_out_as_the_settings_say(name):
    change, expected = BY_HAND[name]
    vision = read(change)
    how = vision.preprocessing, vision.resizing
    np.testing.assert_array_equal(preprocess([PICTURE], SIZE, *how)[0], expected)
    on_device = np.asarray(preprocess_on_device(jnp.asarray(PICTURE)[None], SIZE, *how)[0])
    difference = np.abs(on_device - expected)
    assert difference.max() <= (0 if name == "nearest" else 5) and difference.mean() < 0.5
    again = images_from_hf(preprocessor_to_hf(vision, CLIP), SIZE, CLIP, "folder")
    assert dataclasses.replace(VISION, **again) == vision


@pytest.mark.parametrize(
    ("change", "mean", "std"),
    [
        ({"image_mean": 0.5, "image_std": [0.2, 0.25, 0.5]}, (0.5, 0.5, 0.5), (0.2, 0.25, 0.5)),
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"do_normalize": False, "do_rescale": False}, (0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
        ({"do_rescale": False, "image_mean": 127.5, "image_std": 51.0}, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ({"image_mean": None, "image_processor_type": "SiglipImageProcessorFast"}, (0.5, 0.5, 0.5), VISION.pixel_std),
    ],
)
def test_pixels_are_brought_to_the_range_of_the_settings(change, mean, std):
    """Mean and deviation are of pixels in [0, 1] here, whatever range the processor brings them to."""
    vision = read(change)
    np.testing.assert_allclose((vision.pixel_mean, vision.pixel_std), (mean, std), rtol=1e-12)
    settings = STATED | change
    pixels = np.float64(PICTURE) * (settings["rescale_factor"] if settings["do_rescale"] else 1)
    if settings["do_normalize"] and settings["image_mean"] is not None:
        pixels = (pixels - settings["image_mean"]) / settings["image_std"]
        np.testing.assert_allclose(normalize_pixels(jnp.asarray(PICTURE)[None], vision)[0], pixels, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize False"),
        ({"do_center_crop": False}, "do_center_crop False"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size {'shortest_edge': 32, 'longest_edge': 64}"),
        ({"size": {"longest_edge": 32}}, "size {'longest_edge': 32}"),
        ({"size": {"height": 32, "width": 48}}, "size {'height': 32, 'width': 48}"),
        ({"size": {}}, "size {}"),
        ({"size": "large"}, "size large"),
        ({"size": True}, "size True"),
        ({"size": 16}, "size 16 .here 32, "),
        ({"size": 40}, "size 40 .here 32, "),
        ({"do_center_crop": False, "size": {"height": 40, "width": 40}}, "size .*40.* .here 32, "),
        ({"crop_size": {"height": 32, "width": 16}}, "crop_size"),
        ({"resample": "hamming"}, "resample hamming"),
        ({"resample": [3]}, "resample .3."),
        ({"resample": True}, "resample True"),
        ({"image_std": 0}, "image_std 0"),
        ({"image_mean": "openai"}, "image_mean openai"),
        ({"rescale_factor": "1/255"}, "rescale_factor 1/255"),
        ({"do_pad": True}, "do_pad True .here not applied"),
        ({"pad_size": {"height": 64, "width": 64}}, "pad_size"),
        ({"crop_pct": 0.9}, "crop_pct 0.9"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type ViTImageProcessor"),
    ],
)
def test_what_is_not_applied_is_refused_by_its_name(change, message):
    with pytest.raises(UserError, match=f"folder: its image processor .*: {message}"):
        read(change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"do_pad": False, "pad_size": None, "crop_pct": None, "_valid_processor_keys": ["size"], "device": None},
        {"image_processor_type": "CLIPFeatureExtractor", "do_convert_rgb": None, "data_format": "channels_first"},
        {"size": {"height": None, "shortest_edge": 32}, "crop_size": 32, "resample": None},
    ],
)
def test_what_changes_nothing_is_read(change):
    assert read(change) == VISION


def test_the_processor_of_transformers_5_comes_first(tmp_path):
    """It writes one file with the settings inside; where the older file lies beside it, that is not looked at."""
    assert read_preprocessor(str(tmp_path)) == {}
    older, newer = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    older.write_text(json.dumps({"resample": 2}))
    newer.write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_preprocessor(str(tmp_path)) == {"resample": 2}
    newer.write_text(json.dumps({"image_processor": {"resample": 1}}))
    assert read_preprocessor(str(tmp_path)) == {"resample": 1}
    older.unlink()
    assert read_preprocessor(str(tmp_path)) == {"resample": 1}
    newer.write_text(json.dumps({"image_processor": [1]}))
    with pytest.raises(UserError, match="processor_config.json: its 'image_processor' is not an object"):
        read_preprocessor(str(tmp_path))


def test_a_folder_is_replaced_with_the_processor_that_it_had(clip, tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": STATED | {"resample": 2}}))
    clip_jax.save(clip, tmp_path)
    assert clip_jax.load(tmp_path).config == CONFIG


SQUARE = {"preprocessing": Augment.SQUARE}
BOXED = {"preprocessing": Augment.LETTERBOX, "resizing": Resizing(Resample.BILINEAR, fill=7)}


@pytest.mark.parametrize(
    ("change", "format"),
    [(SQUARE, "hf"), (SQUARE, "open_clip"), (BOXED, "open_clip"), ({"resizing": Resizing(Resample.BILINEAR)}, "hf")],
    ids=str,
)
def test_whole_models_keep_their_preprocessing(tmp_path, change, format):
    config = ClipConfig(8, dataclasses.replace(VISION, **change), TextConfig(100, 12, 99, tower_config(1, 64)))
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), unbox(abstract_variables(config)))
    clip_jax.save(Clip(config, ones["params"], tokenize), tmp_path, format=format)
    assert clip_jax.load(tmp_path).config == config


def test_a_siglip_whose_images_are_cropped():
    """SigLIP's own processor leaves crops out in transformers 4."""
    vision = dataclasses.replace(VISION, tower=VisionTower.SIGLIP)
    written = preprocessor_to_hf(vision, SIGLIP)
    assert written["image_processor_type"] == "CLIPImageProcessor"
    assert dataclasses.replace(vision, **images_from_hf(written, SIZE, SIGLIP, "folder")) == vision
    squeezed = preprocessor_to_hf(dataclasses.replace(vision, **SQUARE), SIGLIP)
    assert squeezed["image_processor_type"] == "SiglipImageProcessor" and "crop_size" not in squeezed


OPEN_CLIP = {
    "bilinear": ({"interpolation": "bilinear"}, resized(49, 32, "BILINEAR")[:, 8:40]),
    "random": ({"interpolation": "random", "size": [32, 32], "mode": "RGB"}, resized(49, 32, "BICUBIC")[:, 8:40]),
    "squash": ({"resize_mode": "squash", "fill_color": 9}, resized(32, 32, "BICUBIC")),
    "longest": (
        {"resize_mode": "longest", "fill_color": 9, "mean": 0.5},
        np.pad(resized(32, 21, "BICUBIC"), ((5, 6), (0, 0), (0, 0)), constant_values=9),
    ),
}


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clips_ways_to_a_square(name):
    settings, expected = OPEN_CLIP[name]
    vision = dataclasses.replace(VISION, **images_from_open_clip(settings, VISION, "file"))
    how = vision.preprocessing, vision.resizing
    np.testing.assert_array_equal(preprocess([PICTURE], SIZE, *how)[0], expected)
    assert np.abs(np.asarray(preprocess_on_device(jnp.asarray(PICTURE)[None], SIZE, *how)[0]) - expected).max() <= 5
    assert vision.pixel_mean == ((0.5,) * 3 if "mean" in settings else VISION.pixel_mean)
    again = images_from_open_clip(images_to_open_clip(vision), VISION, "file")
    assert dataclasses.replace(VISION, **again) == vision


def test_what_open_clip_cannot_do_is_not_written():
    with pytest.raises(UserError, match="not 'lanczos'"):
        images_to_open_clip(dataclasses.replace(VISION, resizing=Resizing(Resample.LANCZOS)))
    with pytest.raises(ValueError, match="from 0 to 255, not 256"):
        Resizing(fill=256)


@pytest.mark.parametrize("change", [SQUARE, BOXED, {"resizing": Resizing(Resample.BILINEAR)}], ids=str)
def test_training_reads_images_as_inference_does(change):
    """What is not cropped at inference is not in training; a crop is one of the same resized image."""
    vision = dataclasses.replace(VISION, **change)
    augment, rng = augment_of(dataclasses.replace(CONFIG, vision=vision)), np.random.default_rng(0)
    square = preprocess([PICTURE], SIZE, vision.preprocessing, vision.resizing)[0]
    held_out = make_transform(augment.held_out, SIZE, vision.resizing)(PICTURE, rng)
    np.testing.assert_array_equal(held_out, square)
    trained = make_transform(augment, SIZE, vision.resizing)(PICTURE, rng)
    if augment is not Augment.CLIP:
        np.testing.assert_array_equal(trained, square)
        return
    whole = resized(49, 32, "BILINEAR").astype(int)
    distance = min(np.abs(whole[:, left : left + SIZE] - trained).max() for left in range(18))
    assert distance <= 1
