"""The same numbers as transformers' `SiglipModel`, open_clip's models and its loss, on random weights of theirs."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

import clip_jax
from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.model import abstract_params
from clip_jax.towers.vit import normalize_pixels
from clip_jax.weights.open_clip import config_from_open_clip, config_to_open_clip
from clip_jax.weights.opening import open_published
from clip_jax.weights.timm import TOWERS
from configs import clip as presets
from dalle_jax.config import from_config_dict
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from tests.clip.same_numbers import TOLERANCE, relative_difference

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("torchvision")]
torch = pytest.importorskip("torch")

TINY = presets.Siglip(40, 16, 12, 2, 48, 4, 100)  # eight pixels are left out
B16, SO400M = presets.SIGLIP_PRESETS["siglip_b16"], presets.SIGLIP_PRESETS["siglip_so400m14"]


def settings(sizes, vocab_size=32_000, num_layers=None):
    package = pytest.importorskip("transformers")
    tower = {
        "hidden_size": sizes.embed_dim,
        "intermediate_size": sizes.mlp_dim,
        "num_hidden_layers": num_layers or sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
    }
    text = tower | {"vocab_size": vocab_size, "max_position_embeddings": sizes.context_length}
    vision = tower | {"image_size": sizes.image_size, "patch_size": sizes.patch_size}
    return package.SiglipConfig(text_config=text, vision_config=vision)


def transformers(config):
    """Biases, gains and both parts of the logits are moved off their first values, so that a mix-up would show."""
    package = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = package.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-3)
    return model


def of_transformers(model, pixels, ids):
    """Features of images and captions, and the logits of all pairs."""
    image = model.get_image_features(pixels).pooler_output
    return image, model.get_text_features(ids).pooler_output, model(input_ids=ids, pixel_values=pixels).logits_per_image


def of_open_clip(model, pixels, ids):
    """The same."""
    return model.encode_image(pixels), model.encode_text(ids), model.get_logits(pixels, ids)[0]


def same_numbers(clip, model, numbers=of_transformers):
    rng, vision, text = np.random.default_rng(0), clip.config.vision, clip.config.text
    images = rng.integers(0, 256, (3, vision.image_size, vision.image_size, 3), dtype=np.uint8)
    ids = rng.integers(2, text.vocab_size, (3, text.context_length)).astype(np.int32)
    for row, length in zip(ids, (1, 5, text.context_length), strict=True):
        row[length - 1 :] = 1
    clip.tokenize = lambda texts: ids[[int(text) for text in texts]]
    pixels = np.asarray(normalize_pixels(jnp.asarray(images), vision)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        image, text, logits = numbers(model, torch.tensor(pixels), torch.tensor(ids).long())
    assert relative_difference(clip.encode_image(images), image) < TOLERANCE
    assert relative_difference(clip.encode_text(["0", "1", "2"]), text) < TOLERANCE
    ours = np.stack([clip.score(images, caption) for caption in ("0", "1", "2")], axis=-1)
    assert relative_difference(ours, logits) < TOLERANCE


@pytest.mark.parametrize("layout", ["one file", "shards", "bin"])
def test_folders_there_and_back(tmp_path, layout):
    package = pytest.importorskip("transformers")
    model = transformers(settings(TINY, vocab_size=300))
    model.save_pretrained(tmp_path, max_shard_size="200KB" if layout == "shards" else "1GB")
    if layout == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert (tmp_path / "model.safetensors.index.json").exists() == (layout == "shards")
    clip = clip_jax.load(tmp_path)
    same_numbers(clip, model)
    clip_jax.save(clip, tmp_path / "out")
    again = package.SiglipModel.from_pretrained(tmp_path / "out")
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), model.state_dict()[name].numpy(), err_msg=name)


def test_the_folders_processor_reads_captions_and_pictures_as_here(tmp_path):
    package = pytest.importorskip("transformers")
    texts = ["a photo of a cat", "Two dogs; and birds, over the sea!"]
    transformers(settings(TINY, vocab_size=300)).save_pretrained(tmp_path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a cat", "two dogs and birds over the sea"] * 20),
        model_prefix=str(tmp_path / "spiece"), model_type="unigram", vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    clip = clip_jax.load(tmp_path, truncate=True)
    clip_jax.save(clip, tmp_path / "out")
    tokenizer = package.SiglipTokenizer.from_pretrained(tmp_path / "out")
    theirs = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(clip.tokenize(texts), theirs)
    pillow = package.SiglipImageProcessorPil.from_pretrained(tmp_path / "out")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), dtype=np.uint8))
    squares = clip_jax.preprocessing.images.preprocess(images, 40, clip.config.vision.preprocessing)
    pixels = np.asarray(normalize_pixels(jnp.asarray(squares), clip.config.vision)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pillow(images, return_tensors="np")["pixel_values"], pixels, atol=1e-5)


@pytest.mark.parametrize("name", presets.SIGLIP_PRESETS)
def test_parameter_counts(name):
    package = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = package.SiglipModel(settings(presets.SIGLIP_PRESETS[name]))
    ours = from_config_dict(clip_jax.ClipStage, presets.get_config(name).clip).model
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(ours)))
    assert count == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("sizes, num_layers", [(B16, None), (SO400M, 2)], ids=["B/16", "So400m/14, 2 layers"])
def test_published_sizes(tmp_path, sizes, num_layers):
    model = transformers(settings(sizes, num_layers=num_layers))
    model.save_pretrained(tmp_path)
    same_numbers(clip_jax.load(tmp_path), model)
    if num_layers is None:
        assert sum(tensor.size for tensor in open_published(tmp_path).tensors.values()) == 203_155_970


# open_clip's models


@pytest.fixture
def small_timm(monkeypatch):
    """The name of a small tower of timm's, in its registry and in the table here."""
    timm = pytest.importorskip("timm.models.vision_transformer")
    registry = pytest.importorskip("timm.models._registry")
    name = "vit_small_patch16_siglip_40"

    def make(num_classes, global_pool, **unused):
        sizes = {"patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 1, "mlp_ratio": 0.75, "img_size": 40}
        return timm.VisionTransformer(num_classes=num_classes, global_pool=global_pool, class_token=False, **sizes)

    monkeypatch.setitem(registry._model_entrypoints, name, make)
    blocks = clip_jax.tower_config(2, 64, mlp_dim=48, activation=Activation.GELU, norm_epsilon=1e-6)
    monkeypatch.setitem(TOWERS, name, clip_jax.VisionConfig(40, 16, blocks, clip_jax.VisionTower.SIGLIP))
    return name


def small_settings(name, **changes):
    """As open_clip's own files of SigLIPs have them, smaller."""
    package = pytest.importorskip("open_clip")
    settings = json.loads(json.dumps(package.get_model_config("ViT-B-16-SigLIP")))
    settings["vision_cfg"] |= {"image_size": 40, "timm_model_name": name}
    text = {"width": 64, "heads": 1, "layers": 2, "context_length": 12, "vocab_size": 300}
    settings["text_cfg"] |= text | changes
    return settings | {"embed_dim": 64}


def open_clip(settings):
    """Biases and gains moved off their first values, and both parts of the logits."""
    package = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = package.CustomTextCLIP(**{name: value for name, value in settings.items() if name != "custom_text"}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-3)
    return model


PICTURES = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.mark.parametrize("changes", [{}, {"act_kwargs": {"approximate": "tanh"}}, {"mlp_ratio": 0.76}], ids=str)
def test_open_clips_folders_there_and_back(tmp_path, small_timm, changes):
    package = pytest.importorskip("open_clip")
    settings = small_settings(small_timm, **changes)
    model = open_clip(settings)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": PICTURES}))
    clip = clip_jax.load(tmp_path)
    same_numbers(clip, model, of_open_clip)
    clip_jax.save(clip, tmp_path / "out", format="open_clip")
    again = package.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), model.state_dict()[name].numpy(), err_msg=name)
    same_numbers(clip, again, of_open_clip)
    assert again.visual.preprocess_cfg["resize_mode"] == "squash"
    assert clip_jax.load(tmp_path / "out").config == clip.config


def test_open_clips_names_in_a_bare_file(tmp_path, small_timm):
    model = open_clip(small_settings(small_timm))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, tmp_path / "epoch_1.pt")
    clip = clip_jax.load(tmp_path / "epoch_1.pt")
    # Eight pixels that the tower leaves out are in no shape.
    config = dataclasses.replace(clip.config, vision=dataclasses.replace(clip.config.vision, image_size=40))
    same_numbers(clip_jax.Clip(config, clip.variables["params"], clip.tokenize), model, of_open_clip)


def test_the_table_is_timms():
    timm = pytest.importorskip("timm")
    for name, config in TOWERS.items():
        with torch.device("meta"):
            trunk = timm.create_model(name, num_classes=0, global_pool="map")
        blocks, mlp = config.vit, trunk.blocks[0].mlp
        assert (len(trunk.blocks), trunk.embed_dim) == (blocks.num_layers, blocks.embed_dim), name
        assert trunk.blocks[0].attn.num_heads == trunk.attn_pool.num_heads == blocks.num_heads, name
        assert mlp.fc1.out_features == trunk.attn_pool.mlp.fc1.out_features == blocks.mlp_dim, name
        assert trunk.patch_embed.img_size == (config.image_size,) * 2, name
        assert trunk.patch_embed.patch_size == (config.patch_size,) * 2, name
        assert trunk.norm.eps == blocks.norm_epsilon, name
        approximate = getattr(mlp.act, "approximate", "tanh" if "Tanh" in type(mlp.act).__name__ else "none")
        assert (approximate == "tanh") is (blocks.activation is Activation.GELU_TANH), name


def test_every_siglip_of_open_clips_is_read_or_refused():
    package = pytest.importorskip("open_clip")
    read = []
    for file in sorted((Path(package.__file__).parent / "model_configs").glob("ViT-*-SigLIP*.json")):
        settings = json.loads(file.read_text())
        if "SigLIP2" in file.name:
            with pytest.raises(UserError, match="SigLIP 2's"):
                config_from_open_clip({"model_cfg": settings}, file.name)
            continue
        if not settings["text_cfg"].get("proj_bias"):
            with pytest.raises(UserError, match="no_causal_mask=True is of a model that is not built here"):
                config_from_open_clip({"model_cfg": settings}, file.name)
            continue
        config = config_from_open_clip({"model_cfg": settings, "preprocess_cfg": PICTURES}, file.name)
        written = config_to_open_clip(config)
        assert config_from_open_clip(written, file.name) == config, file.name
        for section in ("vision_cfg", "text_cfg"):
            ours, theirs = written["model_cfg"][section], settings[section]
            assert {name: ours.get(name) for name in theirs if name not in ("mlp_ratio", "hf_tokenizer_name")} == {
                name: value for name, value in theirs.items() if name not in ("mlp_ratio", "hf_tokenizer_name")
            }, file.name
        read.append(file.stem)
    assert len(read) >= 10


@pytest.mark.slow
def test_open_clips_published_size(tmp_path):
    package = pytest.importorskip("open_clip")
    settings = package.get_model_config("ViT-B-16-SigLIP")
    model = open_clip(settings)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": PICTURES}))
    same_numbers(clip_jax.load(tmp_path), model, of_open_clip)


def test_loss_is_open_clips():
    package = pytest.importorskip("open_clip.loss")
    image, text = np.random.default_rng(0).normal(size=(2, 32, 64)).astype(np.float32)
    scalars = np.float32([10, -10])
    tensors = [torch.tensor(x, requires_grad=True) for x in (image, text, *scalars)]
    units = [torch.nn.functional.normalize(x, dim=-1) for x in tensors[:2]]
    expected = package.SigLipLoss()(*units, *tensors[2:])
    expected.backward()
    value_and_grad = jax.value_and_grad(lambda *args: sigmoid_loss(*args).loss, argnums=(0, 1, 2, 3))
    loss, gradients = value_and_grad(*map(jnp.asarray, (image, text, *scalars)))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, tensors, strict=True):
        assert relative_difference(ours, theirs.grad) < TOLERANCE
