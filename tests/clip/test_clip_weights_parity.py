"""Files that the peers write, loaded here, and files written here, loaded by them: the same features and logits."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax.towers.vit import normalize_pixels
from clip_jax.weights.open_clip import config_from_open_clip
from clip_jax.weights.openai import deduce_config
from clip_jax.weights.opening import open_published
from dalle_jax.nn.layers import Activation
from tests.clip.same_numbers import TEXTS, same_numbers

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("torchvision")]
torch = pytest.importorskip("torch")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a ViT and a text transformer."""

    image_size: int = 64
    patch_size: int = 16
    vision: tuple[int, int] = (2, 128)  # layers, width
    text: tuple[int, int] = (2, 128)
    embed_dim: int = 64


TINY = Sizes()
PUBLISHED = {
    "ViT-B/32": Sizes(224, 32, (12, 768), (12, 512), 512),
    "ViT-B/16, 2 layers": Sizes(224, 16, (2, 768), (2, 512), 512),
    "ViT-L/14, 2 layers": Sizes(224, 14, (2, 1024), (2, 768), 768),
    "ViT-L/14@336px, 1 layer": Sizes(336, 14, (1, 1024), (1, 768), 768),
}


def openai(sizes):
    model = pytest.importorskip("clip.model")
    torch.manual_seed(0)
    (layers, width), (text_layers, text_width) = sizes.vision, sizes.text
    towers = (sizes.embed_dim, sizes.image_size, layers, width, sizes.patch_size, 77, 49408, text_width)
    return model.CLIP(*towers, text_width // 64, text_layers).eval()


def open_clip(sizes, quick_gelu=False, cls="CLIP"):
    package = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    (layers, width), (text_layers, text_width) = sizes.vision, sizes.text
    vision = {"layers": layers, "width": width, "patch_size": sizes.patch_size, "image_size": sizes.image_size}
    text = {"width": text_width, "heads": text_width // 64, "layers": text_layers}
    settings = {"embed_dim": sizes.embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}
    return getattr(package, cls)(**settings).eval(), settings


def transformers(sizes, **changes):
    package = pytest.importorskip("transformers")
    torch.manual_seed(0)
    (layers, width), (text_layers, text_width) = sizes.vision, sizes.text

    def tower(layers, width):
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            **changes,
        }

    vision = tower(layers, width) | {"image_size": sizes.image_size, "patch_size": sizes.patch_size}
    config = package.CLIPConfig(
        vision_config=vision, text_config=tower(text_layers, text_width), projection_dim=sizes.embed_dim
    )
    return package.CLIPModel(config).eval()


def features(method):
    """transformers wraps what it returns."""
    return lambda x: getattr(result := method(x), "pooler_output", result)


def test_openais_archive_in_half_precision(tmp_path):
    """As published: a traced program, matrices in half precision; the original computes in single on a CPU."""
    model = openai(TINY)
    pytest.importorskip("clip.model").convert_weights(model)
    model = model.float()
    ids = torch.tensor(clip_jax.tokenizers.published.load_tokenizer()(TEXTS[:1])).long()
    traced = torch.jit.trace(model, (torch.zeros(1, 3, 64, 64), ids))
    for parameter in traced.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    torch.jit.save(traced, tmp_path / "archive.pt")
    clip = clip_jax.load(tmp_path / "archive.pt")
    assert clip.config.text.transformer.activation is Activation.QUICK_GELU
    for parameter in model.parameters():  # which the program shares
        parameter.data = parameter.data.float()
    same_numbers(clip, model.encode_image, model.encode_text, model.logit_scale)


@pytest.mark.parametrize("what", ["state dict", "module", "legacy"])
def test_openais_other_files(tmp_path, what):
    model = openai(TINY)
    value = model if what == "module" else model.state_dict()
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=what != "legacy")
    same_numbers(clip_jax.load(tmp_path / "a.pt"), model.encode_image, model.encode_text, model.logit_scale)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("cls", ["CLIP", "CustomTextCLIP"])
def test_open_clips_files(tmp_path, quick_gelu, cls):
    model, settings = open_clip(TINY, quick_gelu, cls)
    torch.save({"epoch": 1, "name": "run", "state_dict": {f"module.{name}": tensor for name, tensor in
                model.state_dict().items()}}, tmp_path / "epoch_1.pt")  # fmt: skip
    clip = clip_jax.load(tmp_path / "epoch_1.pt", activation="quick_gelu" if quick_gelu else "gelu")
    same_numbers(clip, model.encode_image, model.encode_text, model.logit_scale)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    clip = clip_jax.load(tmp_path)
    same_numbers(clip, model.encode_image, model.encode_text, model.logit_scale)


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}], ids=str)
@pytest.mark.parametrize("layout", ["one file", "shards", "bin"])
def test_hugging_face_folders(tmp_path, changes, layout):
    model = transformers(TINY, **changes)
    model.save_pretrained(tmp_path, max_shard_size="2MB" if layout == "shards" else "1GB")
    if layout == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert (tmp_path / "model.safetensors.index.json").exists() == (layout == "shards")
    encode = features(model.get_image_features), features(model.get_text_features)
    same_numbers(clip_jax.load(tmp_path), *encode, model.logit_scale)


@pytest.mark.parametrize("half", [False, True])
def test_what_is_written_here_is_loaded_there(tmp_path, half):
    package, other = pytest.importorskip("open_clip"), pytest.importorskip("transformers")
    model = openai(TINY)
    torch.save(model.half().state_dict() if half else model.state_dict(), tmp_path / "a.pt")
    clip = clip_jax.load(tmp_path / "a.pt", param_dtype=None)
    clip_jax.save(clip, tmp_path / "hf", format="hf")
    clip_jax.save(clip, tmp_path / "open_clip", format="open_clip")
    theirs = other.CLIPModel.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == (torch.float16 if half else torch.float32)
    theirs = theirs.float().eval()
    same_numbers(clip, features(theirs.get_image_features), features(theirs.get_text_features), theirs.logit_scale)
    theirs = package.create_model(f"local-dir:{tmp_path / 'open_clip'}").eval()
    same_numbers(clip, theirs.encode_image, theirs.encode_text, theirs.logit_scale)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), model.state_dict()[name].float().numpy(), err_msg=name)


def test_the_folders_processor_reads_captions_and_pictures_as_here(tmp_path):
    other = pytest.importorskip("transformers")
    torch.save(openai(TINY).state_dict(), tmp_path / "a.pt")
    clip = clip_jax.load(tmp_path / "a.pt")
    clip_jax.save(clip, tmp_path / "hf")
    processor = other.CLIPProcessor.from_pretrained(tmp_path / "hf")  # as most people ask for it
    pillow = other.CLIPImageProcessorPil.from_pretrained(tmp_path / "hf")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), dtype=np.uint8))
    theirs = processor(text=[TEXTS[0], TEXTS[2]], images=images, return_tensors="np", padding=True)
    ours = clip.tokenize([TEXTS[0], TEXTS[2]])
    for row, wanted in zip(theirs["input_ids"], ours, strict=True):
        length = list(wanted).index(49407) + 1
        np.testing.assert_array_equal(row[:length], wanted[:length])
    squares = clip_jax.preprocessing.images.preprocess(images, 64)
    pixels = np.asarray(normalize_pixels(jnp.asarray(squares), clip.config.vision)).transpose(0, 3, 1, 2)
    exact = pillow(images, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(exact, pixels, atol=1e-5)
    assert theirs["pixel_values"].shape == pixels.shape


def test_sizes_are_deduced_as_open_clip_names_them():
    """Heads of every plain ViT that open_clip publishes: a bare file of one says no more than shapes."""
    package = pytest.importorskip("open_clip")
    checked = 0
    for file in sorted((Path(package.__file__).parent / "model_configs").glob("ViT-*.json")):
        settings = json.loads(file.read_text())
        plain = {"width", "head_width", "mlp_ratio", "layers", "patch_size", "image_size", "heads", "context_length"}
        plain |= {"vocab_size", "patch_dropout"}
        sections = settings["vision_cfg"], settings["text_cfg"]
        if any(set(section) - plain for section in sections) or settings.get("custom_text"):
            continue
        wanted = config_from_open_clip({"model_cfg": settings}, file.name)
        deduced = deduce_config(_shapes(wanted), file.name, wanted.text.transformer.activation)
        if settings["vision_cfg"]["width"] >= 512:
            assert deduced == wanted, file.name
            checked += 1
    assert checked >= 20


def _shapes(config):
    from clip_jax.weights.openai import openai_names
    from dalle_jax.weights import Tensor
    from dalle_jax.weights.tensors import dense_strides

    return {
        piece.name: Tensor("", 0, np.dtype(np.float32), piece.shape, dense_strides(piece.shape))
        for piece in openai_names(config).pieces
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(tmp_path, name):
    model = openai(PUBLISHED[name])
    torch.save(model.state_dict(), tmp_path / "openai.pt")
    same_numbers(clip_jax.load(tmp_path / "openai.pt"), model.encode_image, model.encode_text, model.logit_scale)
    del model
    model, _ = open_clip(PUBLISHED[name])
    torch.save(model.state_dict(), tmp_path / "open_clip.pt")
    clip = clip_jax.load(tmp_path / "open_clip.pt", activation="gelu")
    same_numbers(clip, model.encode_image, model.encode_text, model.logit_scale)
    del model
    model = transformers(PUBLISHED[name])
    model.save_pretrained(tmp_path / "hf")
    encode = features(model.get_image_features), features(model.get_text_features)
    same_numbers(clip_jax.load(tmp_path / "hf"), *encode, model.logit_scale)
    if name == "ViT-B/32":  # as published
        published = open_published(tmp_path / "openai.pt")
        assert sum(tensor.size for tensor in published.tensors.values()) == 151_277_313
