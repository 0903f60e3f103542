"""Folders of Hugging Face and open_clip: what their settings say is read, written, or refused by name."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import Clip, TextTower
from clip_jax.model import init_params
from clip_jax.tokenizers.published import load_tokenizer
from clip_jax.weights.hf import hf_names
from clip_jax.weights.opening import open_published
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.training.trees import unbox
from dalle_jax.weights import write_safetensors, write_tensors
from tests.clip.small_clip import CONFIG, same, tokenize
from tests.weights import pickled

CHANGES = {
    "gelu": lambda c: _towers(c, activation=Activation.GELU),
    "tanh": lambda c: _towers(c, activation=Activation.GELU_TANH, norm_epsilon=1e-6),
    "wide_mlp": lambda c: _towers(c, mlp_dim=331),
    "heads": lambda c: _towers(c, num_heads=4, head_dim=None),
    "end": lambda c: dataclasses.replace(c, text=dataclasses.replace(c.text, end_id=3)),
    "pixels": lambda c: dataclasses.replace(
        c, vision=dataclasses.replace(c.vision, pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.2, 0.25, 0.3))
    ),
}


def _towers(config, **changes):
    def change(tower):
        own = dict(changes)
        if "head_dim" in own:
            own["head_dim"] = tower.transformer.embed_dim // own["num_heads"]
        return dataclasses.replace(tower, transformer=dataclasses.replace(tower.transformer, **own))

    return dataclasses.replace(config, vision=change(config.vision), text=change(config.text))


@pytest.mark.parametrize("format", ["hf", "open_clip"])
@pytest.mark.parametrize("change", CHANGES)
def test_folders_say_what_their_model_is(tmp_path, change, format):
    config = CHANGES[change](CONFIG)
    params = unbox(jax.jit(functools.partial(init_params, config))(jax.random.key(0)))
    clip_jax.save(Clip(config, params, tokenize), tmp_path, format=format)
    assert open_published(tmp_path).config == config


def test_a_folder_contradicts_an_activation(clip, tmp_path):
    clip_jax.save(clip, tmp_path)
    assert open_published(tmp_path, activation="quick_gelu").config == CONFIG
    with pytest.raises(UserError, match="is 'quick_gelu', not 'gelu': leave activation out"):
        clip_jax.load(tmp_path, activation="gelu")


def test_what_the_others_do_not_have_is_refused(clip, tmp_path):
    text = dataclasses.replace(CONFIG.text, tower=TextTower.BAG_OF_WORDS)
    words = Clip(dataclasses.replace(CONFIG, text=text), clip.variables["params"], tokenize)
    relu = Clip(_towers(CONFIG, activation=Activation.RELU), clip.variables["params"], tokenize)
    wide = Clip(_towers(CONFIG, num_heads=3), clip.variables["params"], tokenize)
    for other, format, message in (
        (words, "hf", "bag_of_words"),
        (words, "open_clip", "bag_of_words"),
        (relu, "open_clip", "not relu"),
        (wide, "hf", "heads"),
        (wide, "open_clip", "heads"),
        (clip, "openclip", "did you mean 'open_clip'"),
    ):
        with pytest.raises(UserError, match=message):
            clip_jax.save(other, tmp_path / "never", format=format)
    assert not (tmp_path / "never").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        clip_jax.save(clip, tmp_path / "file")


def test_shards_with_an_index(clip, variables, tmp_path):
    clip_jax.save(clip, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = write_tensors(hf_names(CONFIG), variables)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        write_safetensors(tmp_path / file, {name: tensors[name] for name in held})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same(clip_jax.load(tmp_path), variables)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors does not exist"):
        clip_jax.load(tmp_path)


def test_old_hugging_face_folders(clip, variables, tmp_path):
    """`pytorch_model.bin`, positions as a buffer, an end id of 2 that means the highest, and sections twice."""
    clip_jax.save(clip, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = write_tensors(hf_names(CONFIG), variables)
    positions = {f"{tower}_model.embeddings.position_ids": np.arange(5)[None] for tower in ("text", "vision")}
    pickled.state_dict(tmp_path / "pytorch_model.bin", tensors | positions)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"]["eos_token_id"] = 2
    settings["vision_config_dict"] = settings["vision_config"]
    settings["vision_config"] = {}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        old = clip_jax.load(path)
        assert old.config == CONFIG
        same(old, variables)


def test_a_folder_of_both_families(clip, variables, tmp_path):
    """As hubs hold open_clip's models: a config and weights for each; what is asked for, or is there, is read."""
    clip_jax.save(clip, tmp_path, format="hf")
    clip_jax.save(clip, tmp_path, format="open_clip")
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "open_clip_model.safetensors"):
        same(clip_jax.load(path, tokenize=tokenize), variables)
    (tmp_path / "open_clip_model.safetensors").unlink()
    same(clip_jax.load(tmp_path, tokenize=tokenize), variables)
    settings = json.loads((tmp_path / "open_clip_config.json").read_text())
    settings["preprocess_cfg"] = settings["model_cfg"]["text_cfg"] = [1]
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(UserError, match="has an open_clip_config.json and no weights beside it"):
        clip_jax.load(tmp_path)
    for wrong in ("text_cfg", "preprocess_cfg"):
        (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match=f"describes no model: its '{wrong}' is not an object"):
            clip_jax.load(tmp_path)
        settings["model_cfg"].pop("text_cfg", None)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(model_type="bert"), "type 'bert'"),
        (lambda s: s["text_config"].update(hidden_act="swish"), "'swish' is none of"),
        (lambda s: s["vision_config"].update(patch_size=15), "patch_size 15"),
        (lambda s: s["vision_config"].update(num_channels=1), "1 channels"),
        (lambda s: s["vision_config"].update(hidden_size=None), "describes no model"),
        (lambda s: s["text_config"].update(vocab_size="many", eos_token_id=2), "describes no model"),
        (lambda s: s["text_config"].update(eos_token_id=None), "eos_token_id is null"),
        (lambda s: s["text_config"].update(eos_token_id=[5, 6]), r"eos_token_id is \[5, 6\]"),
        (lambda s: s.update(text_config=[1]), "describes no model: its 'text_config' is not an object"),
    ],
)
def test_a_folder_of_another_model(clip, tmp_path, change, message):
    clip_jax.save(clip, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    change(settings)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        clip_jax.load(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"resample": 4}, r"resample 4 \(here 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic\)"),
        ({"do_center_crop": False}, r"do_center_crop False \(here True"),
        ({"crop_size": 16}, r"crop_size 16 \(here 32, "),
        ({"size": {"height": 36, "width": 32}}, r"size .*36.* \(here .* of a square"),
        ({"rescale_factor": 0}, "rescale_factor 0"),
        ({"image_mean": [0.5]}, "pixel_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "pixel_std"),
    ],
)
def test_pictures_prepared_in_another_way_are_refused(clip, tmp_path, change, message):
    clip_jax.save(clip, tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        clip_jax.load(tmp_path)


def test_what_a_preprocessor_leaves_open_is_as_here(clip, tmp_path):
    clip_jax.save(clip, tmp_path)
    file = tmp_path / "preprocessor_config.json"
    stated = json.loads(file.read_text())
    file.write_text(json.dumps(stated | {"resample": None, "size": {"shortest_edge": 32, "height": None}}))
    assert clip_jax.load(tmp_path).config == clip.config


def test_sizes_of_pictures_may_be_numbers_as_in_the_published_files(clip, tmp_path):
    clip_jax.save(clip, tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": 32, "crop_size": 32}))
    assert clip_jax.load(tmp_path).config == clip.config


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("vision_cfg", "attentional_pool", True),
        ("preprocess_cfg", "interpolation", "area"),
        ("preprocess_cfg", "resize_mode", "tile"),
        ("preprocess_cfg", "size", [32, 48]),
        ("preprocess_cfg", "mode", "L"),
        ("preprocess_cfg", "std", [0.5, 0.5, 0]),
        ("preprocess_cfg", "crop_pct", 0.9),
        ("vision_cfg", "timm_model_name", "vit_base"),
        ("vision_cfg", "pool_type", "avg"),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "embed_cls", True),
    ],
)
def test_open_clip_parts_that_are_not_built_here(clip, tmp_path, section, key, value):
    clip_jax.save(clip, tmp_path, format="open_clip")
    file = tmp_path / "open_clip_config.json"
    settings = json.loads(file.read_text())
    of = settings if section == "preprocess_cfg" else settings["model_cfg"]
    of[section][key] = value
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=re.escape(f"{section}.{key}={value!r}")):
        clip_jax.load(tmp_path)
    of[section][key] = None
    file.write_text(json.dumps(settings))
    assert open_published(tmp_path).config == CONFIG


@pytest.mark.parametrize("stale", ["tokenizer.json", "added_tokens.json", "spiece.model", "tokenizer.model"])
def test_a_saved_tokenizer_takes_the_place_of_the_one_that_was_there(clip, tmp_path, stale):
    tokenizer = load_tokenizer()
    (tmp_path / stale).write_text('{"<old>": 49408}')
    clip_jax.save(Clip(CONFIG, clip.variables["params"], tokenizer), tmp_path)
    assert not (tmp_path / stale).exists()
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_the_tokenizer_of_a_folder_stays_where_none_is_saved(clip, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    clip_jax.save(clip, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_weights_saved_beside_others_that_are_read_first_are_said_to_be(clip, tmp_path, caplog):
    clip_jax.save(clip, tmp_path, format="open_clip")
    assert not caplog.messages
    clip_jax.save(clip, tmp_path)
    assert "holds open_clip's weights too, which clip_jax.load reads first" in caplog.text
