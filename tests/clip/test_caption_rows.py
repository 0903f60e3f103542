"""What a tokenizer gives is looked at, and where a caption's feature is read."""

import dataclasses
import json

import numpy as np
import pytest

import clip_jax
from clip_jax import Clip, TextConfig, tower_config
from clip_jax.config import ReadAt, TextTower
from clip_jax.evaluation.zero_shot import class_directions
from clip_jax.tokenizers.text_ends import end_at_highest
from clip_jax.tokenizers.token_checks import checked_rows
from clip_jax.towers.text import feature_positions
from clip_jax.weights.open_clip import cleaning_from_open_clip, config_from_open_clip
from clip_jax.weights.opening import open_published
from dalle_jax.errors import UserError
from tests.clip.small_clip import CONFIG, tokenize

TEXT = CONFIG.text
TEXTS = ["1 2", "3"]
ROWS = tokenize(TEXTS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:1], r"gave int32 \[1, 12\]: it gives int \[2, 12\], a row for each caption"),
        (ROWS[:, :8], r"gave int32 \[2, 8\]"),
        (ROWS[0], r"gave int32 \[12\]"),
        (ROWS.astype(np.float32), r"gave float32 \[2, 12\]"),
        (ROWS == 1, r"gave bool \[2, 12\]"),
        ([[98, 99], [98]], "gave no array"),
        (None, "gave object"),
        (np.where(ROWS == 3, 100, ROWS), r"the id 100 for caption 1 \('3'\): the model knows 0 to 99"),
        (np.where(ROWS == 1, -1, ROWS), r"the id -1 for caption 0 \('1 2'\)"),
        (
            np.where(np.arange(2)[:, None] * ROWS == 99, 0, ROWS),
            r"no end-of-text token \(id 99\) for caption 1 \('3'\)",
        ),
    ],
)
def test_rows_that_the_model_cannot_read_are_one_line(clip, rows, message):
    with pytest.raises(UserError, match=message):
        checked_rows(rows, TEXTS, TEXT)
    other = Clip(CONFIG, clip.variables["params"], lambda texts: rows)
    with pytest.raises(UserError, match=message):
        other.encode_text(TEXTS)  # at every call


def test_rows_of_any_integers_are_read():
    for rows in (ROWS, ROWS.astype(np.int64), ROWS.astype(np.uint8), ROWS.tolist()):
        checked = checked_rows(rows, TEXTS, TEXT)
        assert checked.dtype == np.int32
        np.testing.assert_array_equal(checked, ROWS)


def test_where_no_end_is_needed():
    """A SigLIP is read at its last position, and OpenAI's code at the highest id."""
    without = np.where(ROWS == 99, 0, ROWS)
    for change in ({"tower": TextTower.SIGLIP}, {"read_at": ReadAt.HIGHEST}):
        np.testing.assert_array_equal(checked_rows(without, TEXTS, dataclasses.replace(TEXT, **change)), without)
    with pytest.raises(ValueError, match="kind 'bag_of_words' is not read at one id"):
        dataclasses.replace(TEXT, tower=TextTower.BAG_OF_WORDS, read_at=ReadAt.HIGHEST)


def test_the_highest_id_holds_the_feature(clip):
    """Of captions without a higher id the two readings are one; an added token after the end is read in its place."""
    ids = np.array([[50, 1, 90, 2, 0, 0], [50, 95, 1, 90, 0, 0]])
    text = TextConfig(100, 6, 90, tower_config(1, 64))
    highest = dataclasses.replace(text, read_at=ReadAt.HIGHEST)
    assert feature_positions(ids, text).tolist() == [2, 3]
    assert feature_positions(ids, highest).tolist() == [2, 1]
    params = clip.variables["params"]
    at_end, at_highest = (
        Clip(dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, end_id=90, **change)), params, rows)
        for change in ({}, {"read_at": ReadAt.HIGHEST})
        for rows in [lambda texts: np.asarray([[50, 1, 90, *[0] * 9], [50, int(texts[1]), 90, *[0] * 9]])]
    )
    np.testing.assert_array_equal(at_end.encode_text(["", "80"]), at_highest.encode_text(["", "80"]))
    first, second = at_end.encode_text(["", "95"]), at_highest.encode_text(["", "95"])
    np.testing.assert_allclose(first[0], second[0], rtol=1e-5, atol=1e-6)
    assert np.abs(first[1] - second[1]).max() > 0.01


def write_tokenizer(folder, end):
    """CLIP's, of `end` + 1 entries."""
    words = ["a", "a</w>", *(f"{i}</w>" for i in range(end - 3)), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def test_a_vocabulary_that_goes_on_after_the_end_is_read_at_the_highest_id(tmp_path):
    assert end_at_highest(49408, None) == {"end_id": 49407}
    assert end_at_highest(49536, None) == {"end_id": 49407, "read_at": ReadAt.HIGHEST}
    assert end_at_highest(100, str(tmp_path)) == {"end_id": 99}  # OpenAI's tokenizer is not a choice
    write_tokenizer(tmp_path, 89)
    assert end_at_highest(100, str(tmp_path)) == {"end_id": 89, "read_at": ReadAt.HIGHEST}
    assert end_at_highest(90, str(tmp_path)) == {"end_id": 89}
    (tmp_path / "vocab.json").write_text("no JSON")
    assert end_at_highest(100, str(tmp_path)) == {"end_id": 99}


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_folders_of_padded_vocabularies(clip, tmp_path, format):
    """`eos_token_id` 2 of older folders, and open_clip's pooling, mean the highest id."""
    highest = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, end_id=89, read_at=ReadAt.HIGHEST))
    clip_jax.save(Clip(highest, clip.variables["params"], tokenize), tmp_path, format=format)
    if format == "hf":
        assert json.loads((tmp_path / "config.json").read_text())["text_config"]["eos_token_id"] == 2
    write_tokenizer(tmp_path, 89)
    loaded = clip_jax.load(tmp_path)
    assert loaded.config == highest
    assert loaded.encode_text(["a a"]).shape == (1, 8)  # by the folder's tokenizer, whose end is not the last id
    assert open_published(tmp_path).config == highest


def test_open_clips_tokenizer_kwargs():
    def cleaning(kwargs, **text):
        text = {"tokenizer_kwargs": kwargs, **text}
        settings = {"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}}
        config_from_open_clip(settings, "folder")
        return cleaning_from_open_clip(settings, "folder")

    assert cleaning(None) is None and cleaning({"strip_sep_token": False}) is None
    assert cleaning({"clean": "canonicalize"}).value == "canonicalize"
    assert cleaning({"clean": "whitespace"}).value == "whitespace"
    # CLIP's tokenizer of transformers makes small letters of capitals by itself.
    assert cleaning({"clean": "whitespace"}, hf_tokenizer_name="openai/clip-vit-base-patch32") is None
    for kwargs, message in (
        ({"strip_sep_token": True}, "strip_sep_token=True"),
        ({"clean": "title"}, "clean='title'"),
        ({"reduction_mask": "simple"}, "reduction_mask='simple'"),
        ({"additional_special_tokens": ["<x>"]}, "additional_special_tokens="),
    ):
        with pytest.raises(UserError, match=f"text_cfg.tokenizer_kwargs has {message}"):
            cleaning(kwargs)
    with pytest.raises(UserError, match="text_cfg.tokenizer_mode='clips'"):
        cleaning({}, tokenizer_mode="clips")


def test_an_open_clip_folder_says_how_its_captions_are_cleaned(clip, tmp_path):
    clip_jax.save(clip, tmp_path, format="open_clip")
    write_tokenizer(tmp_path, 99)
    file = tmp_path / "open_clip_config.json"
    settings = json.loads(file.read_text())
    settings["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    file.write_text(json.dumps(settings))
    loaded = clip_jax.load(tmp_path)
    np.testing.assert_array_equal(loaded.tokenize(["A_a, a!"]), loaded.tokenize(["a a a"]))
    clip_jax.save(loaded, tmp_path / "again", format="open_clip")
    again = json.loads((tmp_path / "again" / file.name).read_text())
    assert again["model_cfg"]["text_cfg"]["tokenizer_kwargs"] == {"clean": "canonicalize"}


def encode(texts):
    """A direction for each caption."""
    return np.array([[len(text), *map(text.count, "abc")] for text in texts], np.float32)


def test_templates_may_be_functions():
    by_string = class_directions(encode, ["a", "bc"], ["the {}.", "{} {}"])
    mixed = class_directions(encode, ["a", "bc"], ["the {}.", lambda name: f"{name} {name}"])
    np.testing.assert_array_equal(by_string, mixed)


def test_a_function_is_asked_anew(clip):
    """What is kept for the next time is by the captions, not by the function."""
    word = "1"
    first = clip.class_directions(["2", "3"], [lambda name: f"{word} {name}"])
    np.testing.assert_array_equal(first, clip.class_directions(["2", "3"], ["1 {}"]))
    word = "4"
    np.testing.assert_array_equal(
        clip.class_directions(["2", "3"], [lambda name: f"{word} {name}"]), clip.class_directions(["2", "3"], ["4 {}"])
    )


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([0, 1], ["a {}"], "the name of class 0 is not a string but int: 0"),
        (["cat", None], ["a {}"], "the name of class 1 is not a string but NoneType"),
        (["cat", float("nan")], ["a {}"], "class 1 is not a string but float: nan"),
        ([b"cat"], ["a {}"], "class 0 is not a string but bytes"),
        ([["cat", 3]], ["a {}"], "class 0 is not a string but int: 3"),
        ({0: "cat", 1: "dog"}, ["a {}"], "class names come in a list, not as dict"),
        ({"cat"}, ["a {}"], "class names come in a list, not as set"),
        (None, ["a {}"], "class names come in a list, not as NoneType"),
        (["cat"], None, "templates come in a list, not as NoneType"),
        (["cat"], {"a": "a {}"}, "templates come in a list, not as dict"),
        (["cat"], [3], "a template is a string with '{}' or a function, not int: 3"),
        (["cat"], [len], "a template made no string of 'cat' but int: 3"),
        (["cat"], ["a {}", "no place"], "the template 'no place' has no '{}'"),
    ],
)
def test_names_and_templates_of_other_kinds_are_one_line(names, templates, message):
    with pytest.raises(UserError, match=message):
        class_directions(encode, names, templates)


@pytest.mark.parametrize("texts", [None, 5, {"1": 2}, {"1"}], ids=str)
def test_captions_of_other_kinds_are_one_line(clip, texts):
    images = np.zeros((1, 32, 32, 3), np.uint8)
    for call in (clip.encode_text, lambda texts: clip.score(images, texts)):
        with pytest.raises(UserError, match=f"captions come in a list, not as {type(texts).__name__}"):
            call(texts)
