"""ResNets in and out: OpenAI's names and open_clip's folders, statistics included, bit for bit."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax import Clip, ClipConfig, TextConfig, resnet_config, tower_config
from clip_jax.model import abstract_variables
from clip_jax.weights.openai import openai_names
from clip_jax.weights.opening import open_published
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, param_shardings
from dalle_jax.training.trees import named_leaves, unbox
from dalle_jax.weights import mapping, write_safetensors, write_tensors
from tests.weights import pickled

CONFIG = ClipConfig(8, resnet_config(64, (1, 3, 2, 1), 4), TextConfig(96, 12, 95, tower_config(1, 64)))


@pytest.fixture(scope="module")
def variables():
    """Random everywhere, so that no two parameters and no two blocks are alike."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), unbox(abstract_variables(CONFIG)))


@pytest.fixture(scope="module")
def clip(variables):
    return Clip(CONFIG, variables["params"], tokenize, model_state={"batch_stats": variables["batch_stats"]})


@pytest.fixture(scope="module")
def openai(variables):
    return write_tensors(openai_names(CONFIG), variables)


def tokenize(texts):
    return np.zeros((len(texts), 12), np.int32)


def same(clip, variables):
    found, wanted = named_leaves(clip.variables), named_leaves(variables)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_names_are_the_published_ones(openai):
    """By name and shape; those of every ResNet in the parity tests."""
    shapes = {
        "visual.conv1.weight": (2, 3, 3, 3),
        "visual.conv3.weight": (4, 2, 3, 3),
        "visual.bn3.running_var": (4,),
        "visual.layer1.0.conv1.weight": (4, 4, 1, 1),
        "visual.layer1.0.downsample.0.weight": (16, 4, 1, 1),
        "visual.layer2.0.conv1.weight": (8, 16, 1, 1),
        "visual.layer2.2.conv2.weight": (8, 8, 3, 3),
        "visual.layer2.1.bn3.weight": (32,),
        "visual.layer4.0.downsample.1.running_mean": (128,),
        "visual.attnpool.positional_embedding": (5, 128),
        "visual.attnpool.q_proj.weight": (128, 128),
        "visual.attnpool.c_proj.weight": (8, 128),
        "visual.attnpool.c_proj.bias": (8,),
    }
    assert {name: openai[name].shape for name in shapes} == shapes
    # A convolution and four of a normalisation: three in the stem and in each of 7 blocks, one in each of 4 shortcuts.
    visual = [name for name in openai if name.startswith("visual.")]
    assert len(visual) == (3 + 3 * 7 + 4) * 5 + 9
    assert not any("num_batches_tracked" in name or name.endswith(".proj") for name in openai)


def test_bare_files(openai, variables, tmp_path):
    """Sizes from shapes; counters of batches are not parameters."""
    norms = [name.removesuffix("running_mean") for name in openai if name.endswith("running_mean")]
    counters = {f"{name}num_batches_tracked": np.int64(5) for name in norms}
    pickled.state_dict(tmp_path / "plain.pt", openai | counters)
    write_safetensors(tmp_path / "plain.safetensors", openai)
    for name in ("plain.pt", "plain.safetensors"):
        clip = clip_jax.load(tmp_path / name, tokenize=tokenize)
        assert clip.config == CONFIG, name
        same(clip, variables)
    half = {name: x.astype(np.float16) if x.ndim > 1 else x for name, x in openai.items()}
    as_is = clip_jax.load(pickled.state_dict(tmp_path / "half.pt", half), param_dtype=None, tokenize=tokenize)
    assert {x.dtype.name for x in jax.tree.leaves(as_is.variables["batch_stats"])} == {"float32"}
    assert as_is.variables["params"]["vision"]["conv1"]["kernel"].dtype == np.float16
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    assert as_is.encode_image(images).dtype == np.float32


CHANGES = {
    "none": lambda c: c,
    "gelu": lambda c: dataclasses.replace(
        c, text=dataclasses.replace(c.text, transformer=tower_config(1, 64, activation=Activation.GELU))
    ),
    "heads": lambda c: dataclasses.replace(c, vision=resnet_config(64, (1, 3, 2, 1), 4, head_dim=32)),
    "pixels": lambda c: dataclasses.replace(c, vision=dataclasses.replace(c.vision, pixel_mean=(0.5, 0.4, 0.3))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folders_out_and_in_again(variables, tmp_path, change):
    config = CHANGES[change](CONFIG)
    clip = Clip(config, variables["params"], tokenize, model_state={"batch_stats": variables["batch_stats"]})
    clip_jax.save(clip, tmp_path / "out", format="open_clip")
    again = clip_jax.load(tmp_path / "out", tokenize=tokenize)
    assert again.config == config
    same(again, variables)
    clip_jax.save(again, tmp_path / "more", format="open_clip")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "more" / file.name).read_bytes(), file.name


def test_hugging_face_has_no_resnet(clip, tmp_path):
    with pytest.raises(UserError, match=r"no image tower of kind 'resnet': save .* format='open_clip'"):
        clip_jax.save(clip, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_does_not_fit_is_listed(openai, clip, tmp_path):
    broken = dict(openai)
    del broken["visual.layer2.1.bn2.running_var"]
    broken["visual.layer3.0.extra"] = np.zeros(3, np.float32)
    broken["visual.attnpool.positional_embedding"] = np.zeros((6, 128), np.float32)
    with pytest.raises(UserError) as error:
        clip_jax.load(pickled.state_dict(tmp_path / "broken.pt", broken))
    assert "missing: visual.layer2.1.bn2.running_var; unknown: visual.layer3.0.extra;" in str(error.value)
    assert "visual.attnpool.positional_embedding is (6, 128) and should be (5, 128)" in str(error.value)
    short = {name: x for name, x in openai.items() if not name.startswith("visual.layer3.")}
    with pytest.raises(UserError, match="describes no model: .* one block"):
        clip_jax.load(pickled.state_dict(tmp_path / "short.pt", short))
    clip_jax.save(clip, tmp_path / "folder", format="open_clip")
    file = tmp_path / "folder" / "open_clip_config.json"
    settings = json.loads(file.read_text())
    for layers in ([1, 3], [1, 3, 2, "1"], [1, 3, 2, 0]):
        settings["model_cfg"]["vision_cfg"]["layers"] = layers
        file.write_text(json.dumps(settings))
        with pytest.raises(UserError, match=r"open_clip_config\.json describes no model"):
            clip_jax.load(tmp_path / "folder")


def test_straight_onto_a_mesh(openai, variables, tmp_path, monkeypatch):
    """Every device its share, some rows at a time; statistics on all of them."""
    monkeypatch.setattr(mapping, "HOST_BYTES", 10_000)
    published = open_published(pickled.state_dict(tmp_path / "plain.pt", openai))
    mesh = make_mesh(MeshConfig(4, 2, 1))
    shardings = param_shardings(abstract_variables(published.config), mesh, ShardingRules())
    found = published.read(shardings=shardings)
    checked = partial(np.testing.assert_array_equal, strict=True)
    jax.tree.map(checked, found, variables)
    assert jax.tree.map(lambda x: x.sharding, found) == shardings
    split = [name for name, sharding in named_leaves(shardings["params"]["vision"]).items()
             if not sharding.is_fully_replicated]  # fmt: skip
    assert {name.split("/")[-1] for name in split} >= {"kernel", "position_embedding"}
