"""Published weights in and out: every layout gives the same model, bit for bit, and what does not fit is named."""

import dataclasses
import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest

import clip_jax
from clip_jax import Clip
from clip_jax.tokenizers.published import load_tokenizer
from clip_jax.tokenizers.run_tokenizer import TrainedTokenizer
from clip_jax.weights.openai import OFFICIAL, openai_names
from clip_jax.weights.opening import abstract_variables
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.training.trees import unbox
from dalle_jax.weights import write_safetensors, write_tensors
from tests.clip.small_clip import CONFIG, same, tokenize
from tests.weights import pickled


def test_openais_names_are_the_published_ones(openai):
    """By name and shape."""
    assert openai["visual.conv1.weight"].shape == (64, 3, 16, 16)
    assert openai["visual.positional_embedding"].shape == (5, 64)
    assert openai["visual.proj"].shape == (64, 8) and openai["text_projection"].shape == (128, 8)
    assert openai["transformer.resblocks.1.attn.in_proj_weight"].shape == (384, 128)
    assert openai["visual.transformer.resblocks.2.mlp.c_fc.weight"].shape == (96, 64)
    assert openai["logit_scale"].shape == ()
    assert len(openai) == 1 + 2 + 2 + 2 + 2 * 12 + 1 + 1 + 1 + 2 + 3 * 12 + 2


def test_every_bare_file_is_the_same_model(openai, variables, tmp_path, caplog):
    pickled.state_dict(tmp_path / "plain.pt", openai)
    pickled.state_dict(tmp_path / "epoch.pt", {f"module.{name}": array for name, array in openai.items()},
                       wrap=lambda tensors: {"epoch": 1, "state_dict": tensors})  # fmt: skip
    sizes = {name: np.int64(size) for name, size in (("input_resolution", 32), ("vocab_size", 100))}
    pickled.state_dict(tmp_path / "sizes.pt", openai | sizes)
    write_safetensors(tmp_path / "plain.safetensors", openai)
    prefixes = ("transformer.", "token_", "positional_", "ln_final", "text_projection")
    custom = {f"text.{name}" if name.startswith(prefixes) else name: array for name, array in openai.items()}
    write_safetensors(tmp_path / "custom.safetensors", custom)
    _archive(tmp_path / "script.pt", openai)
    for name in ("plain.pt", "epoch.pt", "sizes.pt", "plain.safetensors", "custom.safetensors", "script.pt"):
        clip = clip_jax.load(tmp_path / name, tokenize=tokenize)
        assert clip.config == CONFIG, name
        same(clip, variables)
        assert ("cannot tell its activation" in caplog.text) == (name != "script.pt"), name
        caplog.clear()


def _archive(path, openai):
    """OpenAI's are programs: the tensors are attributes of objects."""
    nested = functools.partial(_nested, extra={"training": False})
    script = {"archive/constants.pkl": b"\x80\x02).", "archive/code/__torch__.py": b"def f(): pass"}
    return pickled.state_dict(path, openai, wrap=nested, extra=script)


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
    with pytest.raises(UserError, match="'quickgelu', did you mean 'quick_gelu'"):
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


@pytest.mark.parametrize("dtype", ["int8", "float15", "float"])
def test_parameters_are_floats(openai, tmp_path, dtype):
    """Whole numbers would be zeros and ones."""
    path = pickled.state_dict(tmp_path / "plain.pt", openai)
    with pytest.raises(UserError, match=rf"param_dtype '{dtype}'.*\(known: float32, bfloat16, float16\)"):
        clip_jax.load(path, param_dtype=dtype)
    assert jax.tree.leaves(clip_jax.load(path, param_dtype="bfloat16").variables)[0].dtype == "bfloat16"


def test_published_weights_have_no_steps(clip, tmp_path):
    clip_jax.save(clip, tmp_path)
    with pytest.raises(UserError, match="holds published weights, not checkpoints of a run: leave step=3 out"):
        clip_jax.load(tmp_path, step=3)


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


def test_official_files_are_checked(openai, tmp_path, caplog, monkeypatch):
    path = pickled.state_dict(tmp_path / "ViT-B-32.pt", openai)
    clip_jax.load(path)
    assert "and is not that file" in caplog.text and "40d365715913" in caplog.text
    caplog.clear()
    import hashlib

    monkeypatch.setitem(OFFICIAL, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    clip_jax.load(path)
    assert "and is not that file" not in caplog.text


@pytest.mark.parametrize("format", ["open_clip", "hf"])
def test_openais_archives_are_theirs_whatever_lies_beside_them(openai, clip, tmp_path, caplog, format):
    towers = {
        name: dataclasses.replace(tower, transformer=dataclasses.replace(tower.transformer, activation=Activation.GELU))
        for name, tower in (("vision", CONFIG.vision), ("text", CONFIG.text))
    }
    clip_jax.save(
        Clip(dataclasses.replace(CONFIG, **towers), clip.variables["params"], tokenize), tmp_path, format=format
    )
    assert clip_jax.load(tmp_path).config.text.transformer.activation is Activation.GELU
    path = _archive(tmp_path / "ViT-B-32.pt", openai)
    assert clip_jax.load(path).config == CONFIG and CONFIG.text.transformer.activation is Activation.QUICK_GELU
    (line,) = caplog.messages
    assert line.startswith(f"{path} is called like OpenAI's file and is not that file")


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


def test_numbers_that_are_none_are_told(openai, tmp_path, caplog):
    whole = pickled.state_dict(tmp_path / "whole.pt", openai)
    clip_jax.load(whole)
    assert "NaN" not in caplog.text
    broken = {name: array.copy() for name, array in openai.items()}
    broken["visual.proj"][0, 0] = np.nan
    broken["logit_scale"] = np.full((), np.inf, np.float32)
    clip_jax.load(pickled.state_dict(tmp_path / "broken.pt", broken))
    assert "2 parameters hold NaN or infinite numbers, such as 'params/" in caplog.text
