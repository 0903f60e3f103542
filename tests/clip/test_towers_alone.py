"""Folders of Hugging Face's with one tower, Flax's files, and folders that are no model: what loads gives the features
of the whole model, and what does not is called what it is."""

import json

import numpy as np
import pytest
from flax.serialization import msgpack_serialize

import clip_jax
from clip_jax.weights.hf import hf_names
from clip_jax.weights.one_tower import OneTower
from clip_jax.weights.opening import open_published
from dalle_jax.errors import UserError
from dalle_jax.weights import write_safetensors, write_tensors
from tests.clip.small_clip import CONFIG, same, tokenize
from tests.weights import pickled

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
TEXTS = ["1 2 3", "4"]


def write_tower(clip, folder, side, projection=True, prefix=True):
    """The folder of one tower of a model, as transformers writes it."""
    clip_jax.save(clip, folder)
    settings = json.loads((folder / "config.json").read_text())
    tower = settings[f"{side}_config"] | {"model_type": f"clip_{side}_model", "projection_dim": CONFIG.embed_dim}
    (folder / "config.json").write_text(json.dumps(tower))
    projected = {"text": "text_projection.weight", "vision": "visual_projection.weight"}[side]
    tensors = {
        name if prefix else name.removeprefix(f"{side}_model."): tensor
        for name, tensor in write_tensors(hf_names(CONFIG), clip.variables).items()
        if name.startswith(f"{side}_model.") or (projection and name == projected)
    }
    write_safetensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("prefix", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("projection", [True, False], ids=["projected", "not"])
def test_the_image_tower_alone(clip, tmp_path, projection, prefix):
    write_tower(clip, tmp_path, "vision", projection, prefix)
    tower = clip_jax.load(tmp_path)
    assert isinstance(tower, OneTower)
    wanted = clip.encode_image(IMAGES) if projection else clip.probe_features(IMAGES)
    np.testing.assert_array_equal(tower.encode_image(IMAGES), wanted)
    for ask in (
        lambda: tower.encode_text(TEXTS),
        lambda: tower.score(IMAGES, "1"),
        lambda: tower.zero_shot(IMAGES, ["1", "2"], ["{}"]),
        lambda: tower.class_directions(["1"], ["{}"]),
    ):
        with pytest.raises(UserError, match="holds the image tower alone, and this needs the text tower"):
            ask()


@pytest.mark.parametrize("prefix", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("projection", [True, False], ids=["projected", "not"])
def test_the_text_tower_alone(clip, tmp_path, projection, prefix):
    write_tower(clip, tmp_path, "text", projection, prefix)
    tower = clip_jax.load(tmp_path, tokenize=tokenize)
    features = tower.encode_text(TEXTS)
    if not projection:
        assert features.shape == (2, CONFIG.text.transformer.embed_dim)
        features = features @ np.asarray(clip.variables["params"]["text_projection"]["kernel"])
    np.testing.assert_allclose(features, clip.encode_text(TEXTS), rtol=1e-5, atol=1e-6)
    for ask in (lambda: tower.encode_image(IMAGES), lambda: tower.score(IMAGES, "1")):
        with pytest.raises(UserError, match="holds the text tower alone, and this needs the image tower"):
            ask()


def test_a_tower_is_not_tuned_or_saved(clip, tmp_path):
    write_tower(clip, tmp_path, "vision")
    with pytest.raises(UserError, match="holds the image tower alone, and both are needed"):
        open_published(tmp_path)
    with pytest.raises(UserError, match="a whole CLIP is saved, or none"):
        clip_jax.save(clip_jax.load(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_tower_lacks_is_named(clip, tmp_path):
    write_tower(clip, tmp_path, "vision")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"missing: vision_model\.encoder\.layers\.3"):
        clip_jax.load(tmp_path)


def flax_tree(variables):
    """The tree of Hugging Face's Flax model."""
    tree = {}
    for name, tensor in write_tensors(hf_names(CONFIG), variables).items():
        *modules, leaf = name.split(".")
        if leaf == "weight" and "norm" in modules[-1]:
            leaf = "scale"
        elif leaf == "weight" and modules[-1] in ("token_embedding", "position_embedding"):
            leaf = "embedding"
        elif leaf == "weight":
            leaf, tensor = "kernel", tensor.transpose((1, 0) if tensor.ndim == 2 else (2, 3, 1, 0))
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[leaf] = np.ascontiguousarray(tensor)
    return tree


def test_flax_files(clip, variables, tmp_path):
    clip_jax.save(clip, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(flax_tree(variables)))
    same(clip_jax.load(tmp_path), variables)
    same(clip_jax.load(tmp_path / "flax_model.msgpack"), variables)


@pytest.mark.parametrize(
    "files, told",
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "a/b"}'}, "an adapter of PEFT's.*base is 'a/b'"),
        ({"modules.json": "[]", "0_CLIPModel/config.json": "{}"}, "sentence-transformers: give .*0_CLIPModel$"),
        ({"model_index.json": "{}", "text_encoder/config.json": "{}"}, "pipeline of diffusers: give .*text_encoder$"),
        ({"refs/main": "abc", "snapshots/abc/config.json": "{}"}, "cache of Hugging Face's hub: give .*snapshots.abc$"),
        ({"models--a--b/refs/main": "abc"}, "cache of Hugging Face's hub: give a folder .* of one of models--a--b"),
        ({"config.json": '{"model_type": "clip"}', "model.fp16.safetensors": ""}, "give the file .*fp16.safetensors"),
        ({"config.json": '{"model_type": "clip"}', "tf_model.h5": ""}, "no weights beside it that are read here"),
        ({"notes.txt": ""}, "is missing: is this a work directory"),
    ],
)
def test_folders_that_are_no_model(tmp_path, files, told):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        clip_jax.load(tmp_path)


def test_a_bare_file_beside_somebody_elses_config(clip, variables, openai, tmp_path):
    path = pickled.state_dict(tmp_path / "m.pt", openai)
    for content in ("[1, 2]", "{ // lr\n}", "", '{"lr": 1}'):
        (tmp_path / "config.json").write_text(content)
        same(clip_jax.load(path, activation="quick_gelu", tokenize=tokenize), variables)


def test_wrapped_and_chosen(variables, openai, tmp_path):
    doubled = {f"clip.{name}": 2 * array for name, array in openai.items()}
    both = {**{f"teacher.{name}": array for name, array in openai.items()}, **doubled}
    options = {"activation": "quick_gelu", "tokenize": tokenize}
    path = pickled.state_dict(tmp_path / "a.pt", both, wrap=lambda tensors: {"epoch": 1, "nothing": {"ema": tensors}})
    same(clip_jax.load(path, key="nothing.ema", prefix="teacher.", **options), variables)
    with pytest.raises(UserError, match="choose the model in it with prefix='teacher.' or prefix='clip.'"):
        clip_jax.load(path, key="nothing.ema", **options)
    with pytest.raises(UserError, match="nothing under key='ema' .its keys are 'epoch', 'nothing'"):
        clip_jax.load(path, key="ema", **options)


@pytest.mark.parametrize(
    "section, name, value, told",
    [
        ("vision_config", "image_size", [32, 32], None),
        ("text_config", "num_hidden_layers", 2.0, None),
        ("vision_config", "image_size", [32, 64], "images here are square"),
        ("text_config", "num_hidden_layers", "2", "num_hidden_layers is '2', which is not a whole number"),
        ("text_config", "num_hidden_layers", 2.5, "not a whole number"),
        ("text_config", "hidden_size", None, "not a whole number"),
    ],
)
def test_sizes_as_people_write_them(clip, tmp_path, section, name, value, told):
    clip_jax.save(clip, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings[section][name] = value
    (tmp_path / "config.json").write_text("\ufeff" + json.dumps(settings))
    if told is None:
        assert open_published(tmp_path).config == CONFIG
    else:
        with pytest.raises(UserError, match=told):
            open_published(tmp_path)


@pytest.mark.parametrize(
    "path, told",
    [
        ("ViT-B/32", "ViT-B/32 does not exist; .*hf download openai/clip-vit-base-patch32 "),
        ("openai/clip-vit-base-patch32", "hf download openai/clip-vit-base-patch32 "),
        ("hf-hub:timm/ViT-B-16-SigLIP", "hf download timm/ViT-B-16-SigLIP "),
        ("ViT-B-32", "does not exist; weights are not downloaded here: hf download OWNER/NAME"),
        ("https://elsewhere.org/a.pt", "copy the files to a disk"),
    ],
)
def test_names_that_are_no_paths(path, told):
    with pytest.raises(UserError, match=told):
        clip_jax.load(path)


def test_an_image_tower_needs_no_tokenizer(clip, tmp_path):
    write_tower(clip, tmp_path, "vision")
    (tmp_path / "tokenizer.json").write_text("damaged")
    tower = clip_jax.load(tmp_path)
    np.testing.assert_array_equal(tower.encode_image(IMAGES), clip.encode_image(IMAGES))
    with pytest.raises(UserError, match="holds the image tower alone, and this needs the text tower"):
        tower.tokenize(TEXTS)
