"""The handle: the same features however images and captions come, zero-shot by hand, and loading."""

import dataclasses
import gc
import itertools
import weakref
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

import clip_jax
from clip_jax import Clip, ClipConfig, ClipModel, ClipStage, ClipTask, TextConfig, VisionConfig, tower_config
from clip_jax.evaluation.zero_shot import class_directions, class_probabilities
from clip_jax.model import init_params
from clip_jax.preprocessing.images import preprocess, preprocess_on_device
from clip_jax.towers.vit import normalize_pixels
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.workdir import open_workdir
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.loop import train
from dalle_jax.training.parallel.mesh import make_mesh

WORDS = ("red", "green", "blue", "circle", "square", "star")
CONFIG = ClipConfig(
    8,
    VisionConfig(16, 8, tower_config(1, 32, head_dim=16)),
    TextConfig(60, 24, 3, tower_config(1, 32, head_dim=16)),
)


def tokenize(texts):
    """`[start] one id a word [end]`."""
    ids = np.zeros((len(texts), CONFIG.text.context_length), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = [4 + WORDS.index(word) for word in text.split()]
        row[: len(words) + 2] = [2, *words, 3]
    return ids


@pytest.fixture(scope="module")
def params():
    return nn.meta.unbox(jax.jit(partial(init_params, CONFIG))(jax.random.key(0)))


@pytest.fixture(scope="module")
def clip(params):
    return Clip(CONFIG, params, tokenize, batch_size=4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def test_pictures_in_every_form_have_the_same_features(clip, params, images, tmp_path):
    pixels = normalize_pixels(jnp.asarray(images), CONFIG.vision)
    expected = ClipModel(CONFIG).apply({"params": params}, pixels, method="encode_image")
    Image.fromarray(images[4]).save(tmp_path / "last.png")
    mixed = [*images[:3], Image.fromarray(images[3]), tmp_path / "last.png"]
    for given in (images, mixed, jnp.asarray(images)):
        np.testing.assert_allclose(clip.encode_image(given), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(clip.encode_image(images), np.ndarray)
    assert clip.encode_image([]).shape == (0, 8)
    compiled = clip._image_features._cache_size()
    clip.encode_image(images[::-1])
    clip.encode_image(jnp.asarray(images) // 2)
    assert clip._image_features._cache_size() == compiled  # once for each shape


def test_resizing_on_device_is_pillows_to_one_level():
    rng = np.random.default_rng(0)
    for height, width, size in ((40, 64, 24), (64, 64, 20), (20, 17, 32)):
        images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        exact = preprocess(images, size).astype(np.float32)
        difference = np.abs(np.asarray(preprocess_on_device(jnp.asarray(images), size)) - exact)
        assert difference.max() <= 1 and difference.mean() < 0.05, (height, width, size)


def test_many_pictures_and_captions_are_spread_over_the_devices(clip, params):
    images = np.random.default_rng(1).integers(0, 256, (45, 16, 16, 3), dtype=np.uint8)
    texts = [" ".join(WORDS[: 1 + i % 6]) for i in range(45)]
    seen = []
    program = clip._text_features
    clip._text_features = lambda params, ids: seen.append(len(ids.sharding.device_set)) or program(params, ids)
    try:
        text = clip.encode_text(texts)
    finally:
        clip._text_features = program
    assert seen == [8, 8]  # batches of 4 on each of 8 devices, then 13 that are padded to 16
    pixels = normalize_pixels(jnp.asarray(images), CONFIG.vision)
    expected = ClipModel(CONFIG).apply({"params": params}, pixels, jnp.asarray(tokenize(texts)))
    np.testing.assert_allclose(clip.encode_image(images), expected.image, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(text, expected.text, rtol=1e-4, atol=1e-5)


def test_probes_read_what_comes_before_the_projection(clip, params, images):
    features = clip.probe_features(images)
    assert features.shape == (5, 32) and clip.probe_features([]).shape == (0, 32)
    projected = features @ params["vision_projection"]["kernel"]
    np.testing.assert_allclose(clip.encode_image(images), projected, rtol=1e-4, atol=1e-5)


def test_captions_of_mixed_length_keep_their_order(clip, params):
    texts = ["red star", " ".join(WORDS * 3), "blue", "green circle red square blue star red", "", "star red"]
    expected = ClipModel(CONFIG).apply({"params": params}, jnp.asarray(tokenize(texts)), method="encode_text")
    np.testing.assert_allclose(clip.encode_text(texts), expected, rtol=1e-5, atol=1e-5)


def test_scores_are_scaled_cosines_and_stay_on_the_device(clip, images):
    texts = ["red star", "blue", "green", "circle", "square star"]
    image, text = clip.encode_image(images), clip.encode_text(texts)
    unit_image, unit_text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    scores = clip.score(images, texts)
    assert scores.dtype == np.float32 and isinstance(scores, np.ndarray)
    np.testing.assert_allclose(scores, np.sum(unit_image * unit_text, axis=-1) / 0.07, rtol=1e-4, atol=1e-4)
    assert clip.score([], []).shape == (0,)
    clip.score(images[:1], "red star")  # the caption's feature is kept from here on
    on_device = jax.device_put(images, jax.devices()[0])
    clip.score(on_device, "red star")  # compiles
    with jax.transfer_guard_device_to_host("disallow"):
        alone = clip.score(on_device, "red star")
    assert isinstance(alone, jax.Array)
    np.testing.assert_allclose(alone, unit_image @ unit_text[0] / 0.07, rtol=1e-4, atol=1e-4)


def test_scores_of_pictures_on_a_mesh_stay_on_it(clip, images):
    mesh = make_mesh(MeshConfig())
    many = np.concatenate([images, images[:3]])
    spread = jax.device_put(many, NamedSharding(mesh, PartitionSpec("data")))
    scores = clip.score(spread, "red star")
    assert len(scores.sharding.device_set) == 8
    np.testing.assert_allclose(scores, clip.score(many, "red star"), rtol=1e-4, atol=1e-4)


def test_zero_shot_by_hand():
    """Two classes, two templates, features whose lengths differ: normalised before and after the mean."""
    features = {"a x": [3, 0], "the x": [0, 5], "a y": [0, -2], "the y": [0, -7]}
    directions = class_directions(
        lambda texts: np.float32([features[t] for t in texts]), ["x", "y"], ["a {}", "the {}"]
    )
    np.testing.assert_allclose(directions, [[0.5**0.5, 0.5**0.5], [0, -1]], rtol=1e-6)
    probabilities = class_probabilities(np.float32([[2, 0], [0, -4]]), directions, logit_scale=2.0)
    logits = np.array([[2**0.5, 0], [-(2**0.5), 2]])
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-6)


def test_several_names_of_a_class_count_alike():
    features = {"a x": [1, 0], "the x": [1, 0], "a y": [0, 3], "the y": [0, 2], "a z": [-1, 0], "the z": [0, 1]}

    def encode(texts):
        return np.float32([features[t] for t in texts])

    directions = class_directions(encode, [("x", "y"), "z"], ["a {}", "the {}"])
    np.testing.assert_allclose(directions, np.float32([[1, 1], [-1, 1]]) / 2**0.5, rtol=1e-6)


def test_zero_shot_is_the_softmax_of_scores_for_one_template(clip, images):
    names = ("circle", "square", "star")
    scores = np.stack([clip.score(images, f"red {name}") for name in names], axis=-1)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(clip.zero_shot(images, names, ["red {}"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda clip, images: clip.score(images, ["red", "blue"]), "5 images and 2 captions"),
        (lambda clip, images: clip.encode_image(images / 255), "uint8"),
        (lambda clip, images: clip.encode_image(jnp.asarray(images[0])), "uint8"),
        (lambda clip, images: clip.encode_image(["/nowhere.png"]), "/nowhere.png"),
        (lambda clip, images: clip.encode_text("red star"), "list of captions"),
        (lambda clip, images: clip.zero_shot(images, ["star"], ["an image"]), "'an image'"),
        (lambda clip, images: clip.zero_shot(images, []), "at least one class"),
    ],
)
def test_mistakes_are_named(clip, images, call, message):
    with pytest.raises(UserError, match=message):
        call(clip, images)


class Pairs:
    """The same batch for ever."""

    bad_counts = {}
    captions_cut = 0
    part_counts = {}

    def __init__(self, batch):
        self.batch = batch

    def iterate(self, start, *, sharding):
        return itertools.repeat(jax.device_put(self.batch, sharding))

    def epoch(self, num_batches, *, sharding):
        return itertools.repeat(jax.device_put(self.batch, sharding), num_batches)


def test_load_reads_what_the_loop_trained_on_eight_devices(images, tmp_path):
    captions = ["a red star", "a blue circle", "green squares on red", "a red circle"] * 2
    tokenizer = train_tokenizer(captions, 40, tmp_path / "tokenizer.model")
    optimizer = OptimizerConfig(1e-3)
    stage = ClipStage(CONFIG, TrainConfig(8, 2, optimizer, eval_batches=1))
    open_workdir(tmp_path, {"clip": stage})
    with pytest.raises(UserError, match="no checkpoint"):
        clip_jax.load(tmp_path)
    ids = tokenizer.encode(captions, CONFIG.text.context_length, end=True)
    pairs = Pairs({"image": np.concatenate([images, images[:3]]), "text": ids})
    state = train(
        ClipTask(stage),
        stage.train,
        mesh_config=MeshConfig(data=4, fsdp=2),
        batches=pairs,
        eval_batches=pairs,
        workdir=tmp_path / "clip",
        seed=0,
    )
    clip = clip_jax.load(tmp_path)
    trained = jax.device_get(state.params)
    expected = ClipModel(CONFIG).apply({"params": trained}, jnp.asarray(ids), method="encode_text")
    np.testing.assert_allclose(clip.encode_text(captions), expected, rtol=1e-5, atol=1e-5)
    assert clip.score(images, "a red star").shape == (5,)
    long = "a red star " * 20
    with pytest.raises(UserError, match=r"caption 1 \('a red star .*reads 24"):
        clip.encode_text(["a red star", long])
    cut = clip.encode_text([long], truncate=True)
    np.testing.assert_array_equal(clip_jax.load(tmp_path, truncate=True).encode_text([long]), cut)
    with pytest.raises(UserError, match="reads 24"):
        clip_jax.load(tmp_path, truncate=True).encode_text([long], truncate=False)
    own = Clip(CONFIG, trained, tokenize)
    with pytest.raises(UserError, match="cuts or refuses captions by itself"):
        own.encode_text([long], truncate=True)
    with pytest.raises(UserError, match="truncate is for the tokenizer beside"):
        clip_jax.load(tmp_path, tokenize=tokenize, truncate=True)


def test_load_refuses_what_it_cannot_read(tmp_path):
    (tmp_path / "ViT-B-32.pt").write_bytes(b"weights")
    with pytest.raises(UserError, match="not a file of weights"):
        clip_jax.load(tmp_path / "ViT-B-32.pt")
    open_workdir(tmp_path / "codec", {"codec": {}})
    with pytest.raises(UserError, match="has no CLIP"):
        clip_jax.load(tmp_path / "codec")
    small = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, vocab_size=10))
    stage = ClipStage(small, TrainConfig(8, 10, OptimizerConfig(1e-3)))
    open_workdir(tmp_path, {"clip": stage})
    train_tokenizer(["a red star", "a blue circle", "green squares on red"], 40, tmp_path / "tokenizer.model")
    with pytest.raises(UserError, match="different runs"):
        clip_jax.load(tmp_path)


def test_one_string_is_no_list(clip, images):
    for call in (
        lambda: clip.zero_shot(images, "cat"),
        lambda: clip.class_directions(["cat"], "a {}"),
        lambda: class_directions(clip.encode_text, "cat", ["a {}"]),
    ):
        with pytest.raises(UserError, match="come in lists"):
            call()
    with pytest.raises(UserError, match="class 1 has no name"):
        clip.class_directions([["red"], []], ["{}"])
    with pytest.raises(UserError, match="caption 1 is not a string but NoneType"):
        clip.encode_text(np.array(["red", None], object))
    np.testing.assert_array_equal(clip.encode_text(word for word in ("red", "blue")), clip.encode_text(["red", "blue"]))


def test_what_a_caller_does_with_directions_is_no_matter_of_the_next(clip):
    first = clip.class_directions(["red", "blue"], ["{}"])
    kept = first.copy()
    first *= 100
    np.testing.assert_array_equal(clip.class_directions(["red", "blue"], ["{}"]), kept)


def test_pictures_on_a_mesh_of_explicit_axes(clip, images):
    """`jax.make_mesh` makes such a mesh."""
    many = np.concatenate([images, images[:3]])
    spread = jax.device_put(many, NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data")))
    np.testing.assert_allclose(clip.encode_image(spread), clip.encode_image(many), rtol=1e-5, atol=1e-5)


def test_inside_jit_it_says_what_to_do(clip, images):
    with pytest.raises(UserError, match="inside it use clip_jax.ClipModel"):
        jax.jit(clip.encode_image)(images)
    fresh = Clip(CONFIG, clip.variables["params"], tokenize)
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda: fresh.encode_text(["red"]))()
    np.testing.assert_array_equal(fresh.encode_text(["red"]), clip.encode_text(["red"]))  # nothing of the trace stayed
    assert clip.encode_image(jnp.asarray(images)).shape == (5, 8)
    with pytest.raises(UserError, match="images on a device are uint8"):
        clip.encode_image(jnp.asarray(images)[..., :1])


def test_weights_go_with_the_last_use(params, images):
    clip = Clip(CONFIG, params, tokenize)
    clip.score(images, "red")
    clip.zero_shot(images, ["red", "blue"], ["{}"])
    gone = weakref.ref(clip)
    gc.disable()
    try:
        del clip
        assert gone() is None, "no cycle keeps it until the collector comes"
    finally:
        gc.enable()
