"""Published weights in and out: every layout gives the same model, bit for bit, and what does not fit is named."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

import clip_jax
from clip_jax import Clip, ClipConfig, TextConfig, TextTower, VisionConfig, tower_config, weights_openai
from clip_jax.model import init_params
from clip_jax.run_tokenizer import TrainedTokenizer
from clip_jax.tokenizers import load_tokenizer
from clip_jax.weights import abstract_variables, open_published
from clip_jax.weights_hf import hf_names
from clip_jax.weights_openai import openai_names
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.nn.transformer import Activation
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.mesh import make_mesh
from dalle_jax.training.sharding import ShardingRules, param_shardings
from dalle_jax.training.trees import named_leaves, unbox
from dalle_jax.weights import mapping, write_safetensors, write_tensors
from tests.weights import pickled

CONFIG = ClipConfig(
    8,
    VisionConfig(32, 16, tower_config(3, 64, mlp_dim=96)),
    TextConfig(100, 12, 99, tower_config(2, 128)),
)
TEXTS = [[98, 5, 99, 0], [98, 7, 8, 99]]


def tokenize(texts):
    return np.asarray([[98, *map(int, text.split()), 99, *[0] * 12][:12] for text in texts], np.int32)


@pytest.fixture(scope="module")
def variables():
    """Random everywhere, so that no two parameters and no two layers are alike."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), unbox(abstract_variables(CONFIG)))


@pytest.fixture(scope="module")
def clip(variables):
    return Clip(CONFIG, variables["params"], tokenize)


@pytest.fixture(scope="module")
def openai(variables):
    """The same with OpenAI's names."""
    return write_tensors(openai_names(CONFIG), variables)


def same(clip, variables):
    found, wanted = named_leaves(clip.variables), named_leaves(variables)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_openais_names_are_the_published_ones(openai):
    """By name and shape."""
    assert openai["visual.conv1.weight"].shape == (64, 3, 16, 16)
    assert openai["visual.positional_embedding"].shape == (5, 64)
    assert openai["visual.proj"].shape == (64, 8) and openai["text_projection"].shape == (128, 8)
    assert openai["transformer.resblocks.1.attn.in_proj_weight"].shape == (384, 128)
    assert openai["visual.transformer.resblocks.2.mlp.c_fc.weight"].shape == (96, 64)
    assert openai["logit_scale"].shape == ()
    assert len(openai) == 1 + 2 + 2 + 2 + 2 * 12 + 1 + 1 + 1 + 2 + 3 * 12 + 2


def test_every_bare_file_is_the_same_model(openai, variables, tmp_path, capsys):
    pickled.state_dict(tmp_path / "plain.pt", openai)
    pickled.state_dict(tmp_path / "epoch.pt", {f"module.{name}": array for name, array in openai.items()},
                       wrap=lambda tensors: {"epoch": 1, "state_dict": tensors})  # fmt: skip
    sizes = {name: np.int64(size) for name, size in (("input_resolution", 32), ("vocab_size", 100))}
    pickled.state_dict(tmp_path / "sizes.pt", openai | sizes)
    write_safetensors(tmp_path / "plain.safetensors", openai)
    prefixes = ("transformer.", "token_", "positional_", "ln_final", "text_projection")
    custom = {f"text.{name}" if name.startswith(prefixes) else name: array for name, array in openai.items()}
    write_safetensors(tmp_path / "custom.safetensors", custom)
    # OpenAI's are programs: the tensors are attributes of objects.
    nested = functools.partial(_nested, extra={"training": False})
    script = {"archive/constants.pkl": b"\x80\x02).", "archive/code/__torch__.py": b"def f(): pass"}
    pickled.state_dict(tmp_path / "script.pt", openai, wrap=nested, extra=script)
    for name in ("plain.pt", "epoch.pt", "sizes.pt", "plain.safetensors", "custom.safetensors", "script.pt"):
        clip = clip_jax.load(tmp_path / name, tokenize=tokenize)
        assert clip.config == CONFIG, name
        same(clip, variables)
        assert ("note: " in capsys.readouterr().err) == (name != "script.pt"), name


def _nested(tensors, extra, prefix=""):
    """Objects in objects, as a TorchScript archive holds them."""
    state, inner = dict(extra), {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = tensor
        else:
            state[head] = tensor
    for head, part in inner.items():
        state[head] = _nested(part, extra, f"{prefix}{head}.")
    return pickled.instance(f"__torch__.{prefix}Module", state)


@pytest.mark.parametrize("activation", list(Activation))
def test_the_activation_of_a_bare_file_is_said(openai, tmp_path, activation):
    path = pickled.state_dict(tmp_path / "plain.pt", openai)
    towers = clip_jax.load(path, activation=activation.value).config
    assert {towers.vision.transformer.activation, towers.text.transformer.activation} == {activation}
    with pytest.raises(UserError, match="'quickgelu' is none, did you mean 'quick_gelu'"):
        clip_jax.load(path, activation="quickgelu")


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_as_it_is_and_upcast(openai, variables, clip, tmp_path, kind):
    """As OpenAI's files: matrices in half precision, the rest in single."""
    halved = {name: x.astype(kind) if x.ndim > 1 and "embedding" not in name else x for name, x in openai.items()}
    path = pickled.state_dict(tmp_path / "half.pt", halved)
    as_is, upcast = clip_jax.load(path, param_dtype=None, tokenize=tokenize), clip_jax.load(path, tokenize=tokenize)
    half = lambda x, y: np.asarray(x).astype(y.dtype)  # noqa: E731
    expected = jax.tree.map(half, variables, as_is.variables)
    same(as_is, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(as_is.variables)} == {np.dtype(kind).name, "float32"}
    same(upcast, jax.tree.map(lambda x: x.astype(np.float32), expected))


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_out_and_in_again_is_bitwise_the_same(clip, variables, tmp_path, format):
    clip_jax.save(clip, tmp_path / "out", format=format)
    again = clip_jax.load(tmp_path / "out", tokenize=tokenize)
    assert again.config == CONFIG
    same(again, variables)
    clip_jax.save(again, tmp_path / "more", format=format)
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "more" / file.name).read_bytes(), file.name


def test_a_half_precision_model_stays_one_and_computes_in_single(openai, tmp_path):
    halved = {name: array.astype(np.float16) for name, array in openai.items()}
    path = pickled.state_dict(tmp_path / "half.pt", halved)
    half, upcast = clip_jax.load(path, param_dtype=None, tokenize=tokenize), clip_jax.load(path, tokenize=tokenize)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(half.encode_image(images), upcast.encode_image(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(half.encode_text(["5", "7 8"]), upcast.encode_text(["5", "7 8"]), rtol=1e-5, atol=1e-6)
    assert half.logit_scale == upcast.logit_scale
    clip_jax.save(half, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    same(clip_jax.load(tmp_path / "out", param_dtype=None), half.variables)


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


def test_published_weights_have_no_steps(clip, tmp_path):
    clip_jax.save(clip, tmp_path)
    with pytest.raises(UserError, match="holds published weights, not checkpoints of a run: leave step=3 out"):
        clip_jax.load(tmp_path, step=3)


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
        with pytest.raises(UserError, match=f"describes no model: its '{wrong}' is no object"):
            clip_jax.load(tmp_path)
        settings["model_cfg"].pop("text_cfg", None)


def test_what_does_not_fit_is_listed(openai, clip, tmp_path):
    broken = dict(openai)
    del broken["ln_final.bias"], broken["visual.ln_pre.weight"]
    broken["visual.extra"] = broken["another"] = np.zeros(3, np.float32)
    broken["visual.ln_post.weight"] = np.zeros(65, np.float32)
    with pytest.raises(UserError) as error:
        clip_jax.load(pickled.state_dict(tmp_path / "broken.pt", broken))
    text = str(error.value)
    assert "missing: ln_final.bias, visual.ln_pre.weight;" in text and "\n" not in text
    assert "unknown: visual.extra, another;" in text
    assert "visual.ln_post.weight is (65,) and should be (64,)" in text
    clip_jax.save(clip, tmp_path / "hf")
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    settings["vision_config"]["num_hidden_layers"] = 4
    (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"vision_model\.encoder\.layers\.3\..* and 6 more"):
        clip_jax.load(tmp_path / "hf")


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("visual.conv1.weight", (64, 3, 0, 0), "should have 4 axes, none of them empty"),
        ("token_embedding.weight", (100, 128, 1), "should have 2 axes"),
        ("transformer.resblocks.0.mlp.c_fc.weight", (), "should have 2 axes"),
        ("text_projection", (0, 0), "none of them empty"),
        ("visual.conv1.weight", (64, 3, 16, 8), r"conv1\.weight is \(64, 3, 16, 8\) and should be \(64, 3, 16, 16\)"),
    ],
)
def test_shapes_that_tell_no_sizes(openai, tmp_path, name, shape, message):
    path = pickled.state_dict(tmp_path / "wrong.pt", openai | {name: np.zeros(shape, np.float32)})
    with pytest.raises(UserError, match=message):
        clip_jax.load(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(model_type="bert"), "type 'bert'"),
        (lambda s: s["text_config"].update(hidden_act="swish"), "'swish' is none of"),
        (lambda s: s["vision_config"].update(patch_size=15), "patch_size 15"),
        (lambda s: s["vision_config"].update(num_channels=1), "1 channels"),
        (lambda s: s["vision_config"].update(hidden_size=None), "describes no model"),
        (lambda s: s["text_config"].update(vocab_size="many", eos_token_id=2), "describes no model"),
        (lambda s: s.update(text_config=[1]), "describes no model: its 'text_config' is no object"),
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
    "section, key, value",
    [
        ("vision_cfg", "attentional_pool", True),
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
    settings["model_cfg"][section][key] = value
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"{section}.{key}={value!r}"):
        clip_jax.load(tmp_path)
    settings["model_cfg"][section][key] = None
    file.write_text(json.dumps(settings))
    assert open_published(tmp_path).config == CONFIG


def test_weights_of_something_else(tmp_path, clip):
    path = pickled.state_dict(tmp_path / "other.pt", {"layer.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(UserError, match="are not those of OpenAI's"):
        clip_jax.load(path)
    # A bare file beside the config of something else is a bare file still.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="are not those of OpenAI's"):
        clip_jax.load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is this a work directory"):
        clip_jax.load(tmp_path / "empty")
    clip_jax.save(clip, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "other.safetensors")
    with pytest.raises(UserError, match="no weights beside it|is this a work directory|has format version"):
        clip_jax.load(tmp_path / "hf")


def test_official_files_are_checked(openai, tmp_path, capsys, monkeypatch):
    path = pickled.state_dict(tmp_path / "ViT-B-32.pt", openai)
    clip_jax.load(path)
    assert "warning: " in (err := capsys.readouterr().err) and "40d365715913" in err
    import hashlib

    monkeypatch.setitem(weights_openai.OFFICIAL, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    clip_jax.load(path)
    assert "warning" not in capsys.readouterr().err


def test_published_tokenizers_come_with_the_weights(openai, tmp_path):
    """OpenAI's where nothing else is said; the files of a folder; a tokenizer trained here; or one that is given."""
    path = pickled.state_dict(tmp_path / "small.pt", openai)
    with pytest.raises(UserError, match="no tokenizer for it"):
        clip_jax.load(path).encode_text(["a cat"])
    assert clip_jax.load(path, tokenize=tokenize).encode_text(["5"]).shape == (1, 8)
    text = dataclasses.replace(CONFIG.text, vocab_size=49408, context_length=16, end_id=49407)
    config = dataclasses.replace(CONFIG, text=text)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, np.float32), unbox(abstract_variables(config)))["params"]
    expected = load_tokenizer(context_length=16)(["a photo of a cat"])
    state = write_tensors(openai_names(config), {"params": params})
    clip = clip_jax.load(pickled.state_dict(tmp_path / "large.pt", state))
    np.testing.assert_array_equal(clip.tokenize(["a photo of a cat"]), expected)
    clip_jax.save(clip, tmp_path / "hf")
    again = clip_jax.load(tmp_path / "hf")
    np.testing.assert_array_equal(again.tokenize(["a photo of a cat"]), expected)
    assert (tmp_path / "hf" / "vocab.json").exists()
    own = train_tokenizer(["a red star", "a blue circle", "green squares on red"] * 3, 40, tmp_path / "tokenizer.model")
    text = dataclasses.replace(CONFIG.text, vocab_size=40, end_id=3)
    config = dataclasses.replace(CONFIG, text=text)
    params = jax.tree.map(lambda x: np.full(x.shape, 0.01, np.float32), unbox(abstract_variables(config)))["params"]
    trained = Clip(config, params, TrainedTokenizer(own, context_length=12))
    for format in ("hf", "open_clip"):
        clip_jax.save(trained, tmp_path / format / "own", format=format)
        again = clip_jax.load(tmp_path / format / "own")
        np.testing.assert_array_equal(again.tokenize(["a red star"]), own.encode(["a red star"], 12, end=True))


@pytest.mark.parametrize(
    "shape, host_bytes",
    [((8, 1, 1), mapping.HOST_BYTES), ((1, 8, 1), mapping.HOST_BYTES), ((2, 2, 2), 40_000), ((1, 8, 1), 10_000)],
)
def test_straight_onto_a_mesh(openai, variables, tmp_path, monkeypatch, shape, host_bytes):
    monkeypatch.setattr(mapping, "HOST_BYTES", host_bytes)
    published = open_published(pickled.state_dict(tmp_path / "plain.pt", openai))
    mesh = make_mesh(MeshConfig(*shape))
    rules = ShardingRules(vocab=()) if shape[2] == 2 else ShardingRules()  # 100 words do not divide
    shardings = param_shardings(abstract_variables(published.config), mesh, rules)
    found = published.read(shardings=shardings)
    for (name, array), wanted, sharding in zip(
        named_leaves(found).items(), jax.tree.leaves(variables), jax.tree.leaves(shardings), strict=True
    ):
        assert array.sharding == sharding, name
        np.testing.assert_array_equal(array, wanted, err_msg=name)


def test_the_host_never_holds_the_model(tmp_path, monkeypatch):
    """NumPy's memory while a model of 25 MiB goes to its device in shares of 1 MiB."""
    monkeypatch.setattr(mapping, "HOST_BYTES", 1 << 20)
    wide = ClipConfig(64, VisionConfig(32, 16, tower_config(6, 256)), TextConfig(2000, 8, 1999, tower_config(2, 256)))
    variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), unbox(abstract_variables(wide)))
    total = sum(array.nbytes for array in jax.tree.leaves(variables))
    assert total > 25 << 20
    path = pickled.state_dict(tmp_path / "wide.pt", write_tensors(openai_names(wide), variables))
    published = open_published(path)
    published.read(shardings=SingleDeviceSharding(jax.devices()[0]))  # compiles
    tracemalloc.start()
    published.read(shardings=SingleDeviceSharding(jax.devices()[0]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.slow
def test_peak_memory_of_a_checkpoint_of_vit_l14(tmp_path):
    """In a process of its own: beside the model itself, which lies in the same memory on a CPU, little over what the
    largest tensor takes, where the model is eleven times as large."""
    large = ClipConfig(
        768, VisionConfig(224, 14, tower_config(24, 1024)), TextConfig(49408, 77, 49407, tower_config(12, 768))
    )
    pieces = openai_names(large).pieces
    arrays = {piece.name: np.full(piece.shape, 0.01, np.float32) for piece in pieces}
    largest = max(array.nbytes for array in arrays.values())
    path = pickled.state_dict(tmp_path / "large.pt", arrays)
    del arrays
    code = """
import sys, jax
from clip_jax.weights import open_published
def now(key): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
jax.block_until_ready(jax.numpy.ones(3) + 1)
before = now("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # VmHWM begins anew
read = open_published(sys.argv[1]).read(shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
jax.block_until_ready(read)
print(now("VmHWM") - before, sum(x.nbytes for x in jax.tree.leaves(read)))
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    peak, model = map(int, done.stdout.split())
    assert model == 4 * 427_616_513
    assert peak - model < 2 * largest
