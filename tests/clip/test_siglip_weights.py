"""SigLIP's folders in and out: the same model bit for bit, its tokenizer, and what they cannot hold."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import sentencepiece

import clip_jax
from clip_jax import Clip, ClipConfig, Loss, TextConfig, TextTower, VisionConfig, VisionTower, tower_config
from clip_jax.tokenizers.published import load_tokenizer
from clip_jax.weights.openai import openai_names
from clip_jax.weights.opening import abstract_variables, open_published
from clip_jax.weights.siglip import LOGITS, PIXELS, siglip_names
from clip_jax.weights.timm import TOWERS
from dalle_jax.data.config import Augment
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, param_shardings
from dalle_jax.training.trees import named_leaves, unbox
from dalle_jax.weights import Names, read_params, read_tensors, write_safetensors, write_tensors
from tests.weights import pickled


def blocks(num_layers, embed_dim):
    return tower_config(num_layers, embed_dim, 16, mlp_dim=40, activation=Activation.GELU_TANH, norm_epsilon=1e-6)


CONFIG = ClipConfig(
    64,
    VisionConfig(32, 16, blocks(3, 64), VisionTower.SIGLIP, **PIXELS),
    TextConfig(100, 12, 1, blocks(2, 32), TextTower.SIGLIP),
    **LOGITS,
)


def tokenize(texts):
    return np.asarray([[*map(int, text.split()), *[1] * 12][:12] for text in texts], np.int32)


@pytest.fixture(scope="module")
def variables():
    """Random everywhere, so that no two parameters and no two layers are alike."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), unbox(abstract_variables(CONFIG)))


@pytest.fixture(scope="module")
def clip(variables):
    return Clip(CONFIG, variables["params"], tokenize)


def same(clip, variables):
    found, wanted = named_leaves(clip.variables), named_leaves(variables)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_names_are_those_of_transformers(variables):
    tensors = write_tensors(siglip_names(CONFIG), variables)
    assert tensors["logit_bias"].shape == tensors["logit_scale"].shape == (1,)
    assert tensors["text_model.head.weight"].shape == (64, 32)
    assert tensors["vision_model.head.probe"].shape == (1, 1, 64)
    assert tensors["vision_model.head.attention.in_proj_weight"].shape == (192, 64)
    assert tensors["vision_model.embeddings.position_embedding.weight"].shape == (4, 64)
    assert tensors["text_model.encoder.layers.1.self_attn.k_proj.bias"].shape == (32,)
    assert len(tensors) == 2 + 2 + 2 * 16 + 2 + 2 + 3 + 3 * 16 + 2 + 11
    pooling = variables["params"]["vision"]["pooling"]
    rows = tensors["vision_model.head.attention.in_proj_weight"][64:128]  # the keys'
    np.testing.assert_array_equal(rows, pooling["qkv_kernel"][:, 1].T)


def test_out_and_in_again_is_bitwise_the_same(clip, variables, tmp_path):
    clip_jax.save(clip, tmp_path / "out")
    again = clip_jax.load(tmp_path / "out", tokenize=tokenize)
    assert again.config == CONFIG
    same(again, variables)
    clip_jax.save(again, tmp_path / "more")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "more" / file.name).read_bytes(), file.name


def test_shards_straight_onto_a_mesh(clip, variables, tmp_path):
    clip_jax.save(clip, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tensors = write_tensors(siglip_names(CONFIG), variables)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        write_safetensors(tmp_path / file, {name: tensors[name] for name in held})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    published = open_published(tmp_path)
    shardings = param_shardings(abstract_variables(CONFIG), make_mesh(MeshConfig(2, 2, 2)), ShardingRules())
    found = published.read(shardings=shardings)
    for (name, array), wanted, sharding in zip(
        named_leaves(found).items(), jax.tree.leaves(variables), jax.tree.leaves(shardings), strict=True
    ):
        assert array.sharding == sharding, name
        np.testing.assert_array_equal(array, wanted, err_msg=name)


def test_folders_as_they_were_published(clip, variables, tmp_path):
    """With next to nothing in config.json, an end id that is CLIP's by mistake, and `pytorch_model.bin`."""
    clip_jax.save(clip, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    pickled.state_dict(tmp_path / "pytorch_model.bin", write_tensors(siglip_names(CONFIG), variables))
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"]["eos_token_id"] = 49407
    del settings["text_config"]["hidden_act"], settings["vision_config"]["layer_norm_eps"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "preprocessor_config.json").unlink()
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        old = clip_jax.load(path, tokenize=tokenize)
        assert old.config == CONFIG
        same(old, variables)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": {"patch_size": 15}}))
    with pytest.raises(UserError, match="does not fit the model; missing: .*; of a wrong shape: "):
        clip_jax.load(tmp_path)


CHANGES = {
    "end": lambda c: dataclasses.replace(c, text=dataclasses.replace(c.text, end_id=3)),
    "activation": lambda c: dataclasses.replace(
        c,
        vision=dataclasses.replace(
            c.vision, transformer=dataclasses.replace(c.vision.transformer, activation=Activation.GELU)
        ),
    ),
    "pixels": lambda c: dataclasses.replace(
        c, vision=dataclasses.replace(c.vision, pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.2, 0.25, 0.3))
    ),
    "left over": lambda c: dataclasses.replace(c, vision=dataclasses.replace(c.vision, image_size=37)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folders_say_what_their_model_is(variables, tmp_path, change):
    config = CHANGES[change](CONFIG)
    clip_jax.save(Clip(config, variables["params"], tokenize), tmp_path)
    assert open_published(tmp_path).config == config


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s, p: s.update(model_type="siglip2"), "type 'siglip2', and those read here are of 'clip' and 'siglip'"),
        (lambda s, p: s["vision_config"].update(vision_use_head=False), "no attention pooling"),
        (lambda s, p: s["vision_config"].update(num_channels=1), "1 channels"),
        (lambda s, p: s["text_config"].update(hidden_act="swish"), "'swish' is none of"),
        (lambda s, p: s["text_config"].update(projection_size=32), "64 is not embed_dim 32"),
        (lambda s, p: p.update(resample=5), r"another way than is done here: resample 5 \(here"),
        (lambda s, p: p.update(size={"shortest_edge": 32}), r"do_center_crop False \(here True"),
    ],
)
def test_a_folder_of_another_model(clip, tmp_path, change, message):
    clip_jax.save(clip, tmp_path)
    files = [tmp_path / name for name in ("config.json", "preprocessor_config.json")]
    contents = [json.loads(file.read_text()) for file in files]
    change(*contents)
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        clip_jax.load(tmp_path)


def test_what_the_others_do_not_have_is_refused(clip, tmp_path):
    params = clip.variables["params"]
    text = dataclasses.replace(CONFIG.text, tower=TextTower.TRANSFORMER)
    boxed = dataclasses.replace(CONFIG.vision, preprocessing=Augment.LETTERBOX)
    softmax = {name: leaf for name, leaf in params.items() if name != "logit_bias"}
    for other, format, message in (
        (clip, "open_clip", "timm, which has none of 3 layers, width 64.*save with format='hf'"),
        (Clip(dataclasses.replace(CONFIG, text=text), params, tokenize), "hf", "not with 'siglip', 'transformer'"),
        (Clip(dataclasses.replace(CONFIG, loss=Loss.SOFTMAX), softmax, tokenize), "hf", "and 'softmax'"),
        (Clip(dataclasses.replace(CONFIG, vision=boxed), params, tokenize), "hf", "no letterboxing"),
    ):
        with pytest.raises(UserError, match=message):
            clip_jax.save(other, tmp_path / "never", format=format)
    assert not (tmp_path / "never").exists()


def test_an_open_clip_folder_says_where_to_go(clip, tmp_path):
    clip_jax.save(clip, tmp_path)
    settings = {"embed_dim": 64, "vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_gap_224"}, "text_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    assert open_published(tmp_path).config == clip.config  # as Hugging Face's, whose weights are there
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"vit_base_patch16_siglip_gap_224.*Hugging Face's folder"):
        clip_jax.load(tmp_path)


# For open_clip


@pytest.fixture
def named(monkeypatch):
    """timm's table with a name for the small tower, whose activation is the other one."""
    blocks = dataclasses.replace(CONFIG.vision.vit, activation=Activation.GELU)
    tower = VisionConfig(32, 16, blocks, VisionTower.SIGLIP)
    monkeypatch.setitem(TOWERS, "vit_small_patch16_siglip_32", tower)


def test_a_tensor_of_several_places_is_read_in_parts(tmp_path):
    """Keys and values lie in one tensor of timm's, and each device has another of them here."""
    ours, names = np.arange(18, dtype=np.float32).reshape(3, 3, 2), Names()
    names.array("x", "q", (2, 3), (1, 0), (None, slice(0, 1)))
    names.array("x", "kv", (4, 3), (1, 0), (None, slice(1, 3)))
    tensors = write_tensors(names, {"x": ours})
    np.testing.assert_array_equal(tensors["kv"], ours[:, 1:].reshape(3, 4).T)
    write_safetensors(tmp_path / "a.safetensors", tensors)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("a",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "a"))
    shapes = {"x": jax.ShapeDtypeStruct(ours.shape, ours.dtype)}
    found = read_params(names, shapes, read_tensors(tmp_path / "a.safetensors"), shardings=sharding)["x"]
    np.testing.assert_array_equal(found, ours)
    assert {shard.data.shape for shard in found.addressable_shards} == {(3, 1, 2)}


@pytest.mark.parametrize("end_id", [1, 3])
def test_for_open_clip_out_and_in_again(variables, named, tmp_path, caplog, end_id):
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, end_id=end_id))
    clip_jax.save(Clip(config, variables["params"], tokenize), tmp_path / "out", format="open_clip")
    assert "'gelu_tanh' and open_clip's of the same sizes 'gelu'" in caplog.text
    again = clip_jax.load(tmp_path / "out", tokenize=tokenize)
    assert again.config == config
    same(again, variables)
    clip_jax.save(again, tmp_path / "more", format="open_clip")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "more" / file.name).read_bytes(), file.name


def test_open_clips_names_without_a_config(tmp_path, caplog):
    """Heads are not in the file: those of published towers are 64 wide, and 72 in the So400m."""
    one_head = tower_config(2, 64, mlp_dim=40, activation=Activation.GELU_TANH, norm_epsilon=1e-6)
    vision, text = (dataclasses.replace(side, transformer=one_head) for side in (CONFIG.vision, CONFIG.text))
    config = dataclasses.replace(CONFIG, vision=vision, text=text)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), unbox(abstract_variables(config)))
    write_safetensors(tmp_path / "a.safetensors", write_tensors(openai_names(config, text_prefix="text."), variables))
    bare = clip_jax.load(tmp_path / "a.safetensors", activation="gelu_tanh", tokenize=tokenize)
    assert bare.config == config
    same(bare, variables)
    assert not caplog.records
    exact = clip_jax.load(tmp_path / "a.safetensors", tokenize=tokenize).config
    assert exact.vision.vit.activation is exact.text.transformer.activation is Activation.GELU
    assert "GELU is taken, as open_clip's first SigLIPs" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m["vision_cfg"].update(timm_pool="avg"), "timm_pool='avg' is of a model that is not built here"),
        (lambda m: m["vision_cfg"].update(timm_proj="linear"), "timm_proj='linear' is of a model"),
        (lambda m: m["vision_cfg"].pop("timm_pool"), "leaves timm_pool or timm_proj out"),
        (lambda m: m["vision_cfg"].update(image_size=64), "images of 64, and timm's .* reads 32"),
        (lambda m: m["text_cfg"].update(pool_type="first"), "no_causal_mask=True"),
        (lambda m: m["text_cfg"].update(no_causal_mask=False), "pool_type='last'"),
        (lambda m: m["text_cfg"].update(hf_tokenizer_name="timm/ViT-B-16-SigLIP2"), "SigLIP 2's"),
        (lambda m: m.pop("init_logit_bias"), "unknown: logit_bias"),
    ],
)
def test_an_open_clip_folder_of_another_model(clip, named, tmp_path, change, message):
    clip_jax.save(clip, tmp_path, format="open_clip")
    file = tmp_path / "open_clip_config.json"
    settings = json.loads(file.read_text())
    change(settings["model_cfg"])
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        clip_jax.load(tmp_path)


def test_a_clip_trained_by_the_sigmoid_loss_keeps_its_bias(tmp_path):
    vision = VisionConfig(32, 16, tower_config(1, 64))
    config = ClipConfig(8, vision, TextConfig(100, 12, 99, tower_config(1, 64)), **LOGITS)
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), unbox(abstract_variables(config)))
    clip_jax.save(Clip(config, ones["params"], tokenize), tmp_path, format="open_clip")
    assert open_published(tmp_path).config == config
    same(clip_jax.load(tmp_path, tokenize=tokenize), ones)


def test_the_tokenizer_beside_the_weights_is_used(clip, tmp_path):
    clip_jax.save(clip, tmp_path)
    with pytest.raises(UserError, match="no tokenizer for it"):
        clip_jax.load(tmp_path).encode_text(["a cat"])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small red circle on white", "two large blue stars in a row"] * 20),
        model_prefix=str(tmp_path / "spiece"),
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    expected = load_tokenizer(tmp_path, context_length=12)(["A red!"])
    loaded = clip_jax.load(tmp_path)
    np.testing.assert_array_equal(loaded.tokenize(["A red!"]), expected)
    assert expected[0, -1] == 1 and loaded.encode_text(["A red!"]).shape == (1, 64)
    clip_jax.save(loaded, tmp_path / "again")
    assert (tmp_path / "again" / "spiece.model").read_bytes() == (tmp_path / "spiece.model").read_bytes()
    np.testing.assert_array_equal(clip_jax.load(tmp_path / "again").tokenize(["A red!"]), expected)
    long = "a small red circle on white, two large blue stars in a row"
    with pytest.raises(UserError, match="reads 12: shorten it, or let captions be cut"):
        loaded.encode_text([long])
    assert clip_jax.load(tmp_path, truncate=True).tokenize([long])[0, -1] == 1
