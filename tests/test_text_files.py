"""Texts that strangers write: their encodings, and what ends a line in them."""

import pytest

from dalle_jax.config import read_json
from dalle_jax.data.captions import captions_from_json, captions_from_mapping, captions_from_text
from dalle_jax.data.records import BadReason
from dalle_jax.text_files import decode_text, split_lines

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


@pytest.mark.parametrize("separator", SEPARATORS)
def test_only_line_feeds_and_carriage_returns_end_lines(separator):
    """`str.splitlines` cuts at eight more characters, which stand inside captions from web pages."""
    assert split_lines(f"a red{separator}cube\r\ntwo\rthree\nfour") == [f"a red{separator}cube", "two", "three", "four"]
    assert captions_from_text(f"a red{separator}cube\n".encode())[0] == ("a red cube",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_encodings_are_read(encoding):
    assert decode_text("un café".encode(encoding)) == "un café"
    assert captions_from_text("un café\nzwei".encode(encoding)) == (("un café", "zwei"), None)
    assert captions_from_json('{"caption": "un café"}'.encode(encoding)) == (("un café",), None)


OTHERS = {
    "utf-16-le": "a cat".encode("utf-16-le"),
    "utf-16-be": "a cat".encode("utf-16-be"),
    "zeros": bytes(40),
    "latin-1": b"caf\xe9",
    "half": b"\xff\xfea",
    "utf-32": "a cat".encode("utf-32"),
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_other_bytes_are_no_caption(data):
    """Zero bytes are UTF-8 by the letter, and what a hole in a disk leaves of a file."""
    assert captions_from_text(data) == ((), BadReason.CAPTION_ENCODING)
    assert captions_from_json(data) == ((), BadReason.CAPTION_ENCODING)


@pytest.mark.parametrize("data", [*OTHERS.values(), "a cat\0", "\0"], ids=[*OTHERS, "zero", "zeros alone"])
def test_nor_are_they_one_in_a_table_or_an_object(data):
    """Parquet and TFDS have captions as bytes, and a JSON string may hold any character."""
    assert captions_from_mapping({"caption": data}) == ((), BadReason.CAPTION_ENCODING)
    assert captions_from_mapping({"caption": ["a cat", data]}) == ((), BadReason.CAPTION_ENCODING)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_bytes_in_a_table_are_read_as_files_are(encoding):
    assert captions_from_mapping({"caption": "un café".encode(encoding)}) == (("un café",), None)


def test_a_pointer_of_git_lfs_is_no_caption():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    assert captions_from_text(pointer) == captions_from_json(pointer) == ((), BadReason.LFS_POINTER)


def test_a_key_that_comes_again_loses_nothing():
    assert captions_from_json(b'{"caption": "one", "url": "u", "caption": ["two", "three"]}')[0] == (
        "one",
        "two",
        "three",
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_json_file_is_read_in_the_same_encodings(tmp_path, encoding):
    (tmp_path / "prompts.json").write_text('{"classes": ["café"]}', encoding=encoding)
    assert read_json(tmp_path / "prompts.json") == {"classes": ["café"]}
