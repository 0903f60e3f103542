"""Folders as transformers 5 writes them, with settings and tokens of their own: the same features there and here."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from PIL import Image

import clip_jax
from clip_jax.preprocessing.hf import SIGLIP, images_from_hf
from clip_jax.preprocessing.images import preprocess
from clip_jax.preprocessing.open_clip import images_from_open_clip
from clip_jax.tokenizers.cleaning import Cleaning
from clip_jax.tokenizers.published import load_tokenizer
from clip_jax.towers.vit import normalize_pixels
from tests.clip.same_numbers import TOLERANCE, relative_difference

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("torchvision")]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CROPPED = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
SETTINGS = {
    "openai": CROPPED,
    "imagenet": {**CROPPED, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "bilinear": {**CROPPED, "resample": 2},
    "lanczos": {**CROPPED, "resample": 1},
    "nearest": {**CROPPED, "resample": 0},
    "squeezed": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    "not normalized": {**CROPPED, "do_normalize": False},
    "not rescaled": {**CROPPED, "do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
    "other factor": {**CROPPED, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "nothing": {**CROPPED, "do_normalize": False, "do_rescale": False},
}
CAPTIONS = ["a photo of <cat-toy>", "a photo of a dog", "a ZZxqv, <CAT-TOY>s and <S>", "<|endoftext|> inside", ""]


def images():
    """Even offsets, where the crops of transformers and of torchvision are one."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)) for _ in range(2)]


def towers(**text):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    return transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=vision, text_config={**sizes, **text}, projection_dim=32)
    ).eval()


def features(result):
    return getattr(result, "pooler_output", result)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """OpenAI's tokenizer as a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in load_tokenizer().files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def model():
    return towers()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("layout", ["processor", "image processor"])
def test_images_through_the_folders_processor(tmp_path, model, plain, name, layout):
    processor = transformers.CLIPImageProcessorPil(**SETTINGS[name])
    model.save_pretrained(tmp_path)
    if layout == "processor":
        transformers.CLIPProcessor(processor, transformers.CLIPTokenizer.from_pretrained(plain)).save_pretrained(
            tmp_path
        )
        assert not (tmp_path / "preprocessor_config.json").exists()
    else:
        processor.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = features(model.get_image_features(processor(images(), return_tensors="pt")["pixel_values"]))
    clip = clip_jax.load(tmp_path)
    assert relative_difference(clip.encode_image(images()), theirs) < TOLERANCE
    clip_jax.save(clip, tmp_path / "again")
    again = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "again")
    vision = clip.config.vision
    ours = normalize_pixels(jnp.asarray(preprocess(images(), 32, vision.preprocessing, vision.resizing)), vision)
    pixels = again(images(), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resample", [2, 3])
def test_a_siglip_through_its_processor(resample):
    processor = transformers.SiglipImageProcessorPil(resample=resample, size={"height": 32, "width": 32})
    found = images_from_hf(processor.to_dict(), 32, SIGLIP, "folder")
    squares = preprocess(images(), 32, found["preprocessing"], found["resizing"])
    pixels = (squares / 255 - np.array(found["pixel_mean"])) / np.array(found["pixel_std"])
    theirs = processor(images(), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels, theirs, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("shape", [(41, 67), (67, 41), (5, 90), (20, 20)])
def test_open_clips_transform(interpolation, resize_mode, shape):
    package = pytest.importorskip("open_clip")
    settings = {"mean": [0.5, 0.4, 0.3], "std": 0.25, "resize_mode": resize_mode, "interpolation": interpolation,
                "fill_color": 100}  # fmt: skip
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    theirs = package.image_transform(32, is_train=False, **settings)(image).numpy().transpose(1, 2, 0)
    vision = clip_jax.VisionConfig(32, 16, clip_jax.tower_config(1, 64))
    found = images_from_open_clip(settings, vision, "file")
    (square,) = preprocess([image], 32, found["preprocessing"], found["resizing"])
    pixels = (square / 255 - np.array(found["pixel_mean"])) / np.array(found["pixel_std"])
    np.testing.assert_allclose(pixels, theirs, atol=1e-5)


@pytest.mark.parametrize("end", [49407, 2])
@pytest.mark.parametrize("layout", ["tokenizer.json", "added_tokens.json", "added_tokens_decoder"])
def test_added_tokens(tmp_path, plain, end, layout):
    """With `eos_token_id` 2 the feature is that of the added token, whose id is the highest: as transformers has it."""
    theirs = transformers.CLIPTokenizer.from_pretrained(plain)
    theirs.add_tokens(["<cat-toy>", "ZZxqv"])
    theirs.add_tokens(["<S>"], special_tokens=True)
    model = towers(eos_token_id=end, vocab_size=49411)
    model.save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    if layout != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
        for name, content in load_tokenizer(plain).files().items():
            (tmp_path / name).write_bytes(content)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        special = {"<cat-toy>": False, "ZZxqv": False, "<S>": True}
        if layout == "added_tokens.json":
            (tmp_path / layout).write_text(json.dumps({name: 49408 + i for i, name in enumerate(special)}))
            settings["additional_special_tokens"] = ["<S>"]
        else:
            settings[layout] = {
                str(49408 + i): {"content": name, "special": special[name], "normalized": not special[name],
                                 "lstrip": False, "rstrip": False, "single_word": False}
                for i, name in enumerate(special)
            }  # fmt: skip
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ids = theirs(CAPTIONS, return_tensors="pt", padding="max_length", max_length=77)["input_ids"]
    with torch.no_grad():
        expected = features(model.get_text_features(ids))
    clip = clip_jax.load(tmp_path)
    for ours, row in zip(clip.tokenize(CAPTIONS), ids.tolist(), strict=True):
        length = row.index(49407) + 1
        assert ours[:length].tolist() == row[:length]
    assert relative_difference(clip.encode_text(CAPTIONS), expected) < TOLERANCE
    clip_jax.save(clip, tmp_path / "again")
    assert relative_difference(clip_jax.load(tmp_path / "again").encode_text(CAPTIONS), expected) < TOLERANCE
    written = transformers.CLIPTokenizer.from_pretrained(tmp_path / "again")
    assert written(CAPTIONS)["input_ids"] == theirs(CAPTIONS)["input_ids"]


@pytest.mark.parametrize("end", [49407, 2])
def test_vocabularies_that_are_padded(tmp_path, plain, end):
    model = towers(eos_token_id=end, vocab_size=49536)
    model.save_pretrained(tmp_path)
    ids = transformers.CLIPTokenizer.from_pretrained(plain)(CAPTIONS, return_tensors="pt", padding=True)["input_ids"]
    with torch.no_grad():
        expected = features(model.get_text_features(ids))
    for tokenize in (None, load_tokenizer(plain)):
        clip = clip_jax.load(tmp_path, tokenize=tokenize)
        found = clip.encode_text([caption for caption in CAPTIONS if "<" not in caption])
        wanted = expected.numpy()[["<" not in caption for caption in CAPTIONS]]
        assert relative_difference(found, wanted) < TOLERANCE


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace"])
def test_open_clips_cleaning(clean):
    tokenizer = pytest.importorskip("open_clip").tokenizer.SimpleTokenizer(clean=clean)
    ours = load_tokenizer(cleaning=Cleaning(clean))
    texts = ["A Photo_of (two) CATS, &amp; a dog.", "It's NAÏVE  3.5", "ＦＵＬＬ ﬁne", ""]
    np.testing.assert_array_equal(ours(texts), tokenizer(texts).numpy())


def test_tokens_added_to_siglips_vocabulary(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a red circle on the blue square", "dogs and cats"] * 60),
        model_prefix=str(tmp_path / "spiece"), model_type="unigram", vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    theirs = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    theirs.add_tokens(["<cat-toy>", "zzxqv"])
    theirs.add_tokens(["<S>"], special_tokens=True)
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    for text in (
        "a photo of a <cat-toy> on the red",
        "<cat-toy> dogs",
        "zzxqvs and, a <S>",
        "<S> dogs",
        "cats<cat-toy>",
    ):
        assert ours.pieces(text) == theirs(text)["input_ids"][:-1], text
