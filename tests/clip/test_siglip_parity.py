"""The same numbers as transformers' `SiglipModel` and open_clip's loss, on random weights of theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

import clip_jax
from clip_jax.model import abstract_params
from clip_jax.sigmoid_loss import sigmoid_loss
from clip_jax.vision import normalize_pixels
from clip_jax.weights import open_published
from configs import clip as presets
from dalle_jax.config import from_config_dict
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


def same_numbers(clip, model):
    """Features of pictures and captions, and the logits of all pairs."""
    rng, vision, text = np.random.default_rng(0), clip.config.vision, clip.config.text
    images = rng.integers(0, 256, (3, vision.image_size, vision.image_size, 3), dtype=np.uint8)
    ids = rng.integers(2, text.vocab_size, (3, text.context_length)).astype(np.int32)
    for row, length in zip(ids, (1, 5, text.context_length), strict=True):
        row[length - 1 :] = 1
    clip.tokenize = lambda texts: ids[[int(text) for text in texts]]
    pixels = np.asarray(normalize_pixels(jnp.asarray(images), vision)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        output = model(input_ids=torch.tensor(ids).long(), pixel_values=torch.tensor(pixels))
        image = model.get_image_features(torch.tensor(pixels)).pooler_output
        text = model.get_text_features(torch.tensor(ids).long()).pooler_output
    assert relative_difference(clip.encode_image(images), image) < TOLERANCE
    assert relative_difference(clip.encode_text(["0", "1", "2"]), text) < TOLERANCE
    ours = np.stack([clip.score(images, caption) for caption in ("0", "1", "2")], axis=-1)
    assert relative_difference(ours, output.logits_per_image) < TOLERANCE


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
    squares = clip_jax.pictures.preprocess(images, 40, clip.config.vision.preprocessing)
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
