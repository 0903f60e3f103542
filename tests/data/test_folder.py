"""Folders: captions beside the images, or in a table."""

import pytest

from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.records import BadReason
from dalle_jax.errors import UserError


@pytest.fixture
def folder(tmp_path, png):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(("b.png", "a.JPG", "sub/c.webp")):
        (tmp_path / name).write_bytes(png(i))
    return tmp_path


def everything(source):
    return {source.key(i): source[i].captions for i in range(len(source))}


def test_captions_beside_the_pictures(folder, png):
    (folder / "a.txt").write_text("first\nsecond\n", encoding="utf-8-sig")
    (folder / "sub/c.txt").write_bytes(b"\xe9")
    (folder / ".hidden.png").write_bytes(png())
    (folder / "notes.pdf").write_bytes(b"")
    source = Folder(str(folder))
    assert everything(source) == {"a.JPG": ("first", "second"), "b.png": (), "sub/c.webp": ()}
    assert source[2].captions_fault == BadReason.CAPTION_ENCODING
    assert source[0].image == png(1)


def test_csv(folder, png):
    rows = b'file_name,caption\na.JPG,"one, with a comma"\nsub/c.webp,three\na.JPG,uno\nb.png,'
    (folder / "captions.csv").write_bytes(rows + b"caf\xe9\ngone.png,nobody\n")
    source = Folder(str(folder))
    records = {source.key(i): i for i in range(len(source))}
    assert list(records) == ["a.JPG", "sub/c.webp", "b.png"]
    assert source[0].captions == ("one, with a comma", "uno")
    assert source[records["b.png"]].captions_fault == BadReason.CAPTION_ENCODING
    assert [(left.count, left.example) for left in source.left_out] == [(1, "gone.png")]


def test_jsonl(folder):
    lines = '{"image": "b.png", "text": "two"}\n\n{"image": "a.JPG", "captions": ["one", "uno"], "alt": "x"}\n'
    (folder / "captions.jsonl").write_text(lines)
    assert everything(Folder(str(folder))) == {"b.png": ("two",), "a.JPG": ("one", "uno")}


def test_named_fields(folder):
    (folder / "metadata.csv").write_text("id,picture,title,alt\n1,a.JPG,T,A\n")
    source = Folder(str(folder), caption_field="alt", image_field="picture")
    assert everything(source) == {"a.JPG": ("A",)}
    with pytest.raises(UserError, match=r"line 2: no image is named by file_name or .*\(its fields: id, picture"):
        Folder(str(folder))
    with pytest.raises(UserError, match="no image is named by pictur .*did you mean 'picture'"):
        Folder(str(folder), image_field="pictur")
    with pytest.raises(UserError, match=r"no field 'tilte', did you mean 'title'\? \(config.data.caption_field\)"):
        Folder(str(folder), image_field="picture", caption_field="tilte")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nope", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ("9" * 5000, r"line 2 is not JSON \(Exceeds the limit"),
        ("[" * 200_000, r"line 2 is not JSON \(nested too deeply\)"),
    ],
)
def test_broken_jsonl_lines_are_named(folder, line, message):
    (folder / "captions.jsonl").write_text('{"file": "b.png"}\n' + line)
    with pytest.raises(UserError, match=message):
        Folder(str(folder))


def test_a_csv_with_a_quote_that_is_not_closed(folder):
    (folder / "captions.csv").write_text('file_name,caption\na.JPG,"one\n' + "b.png,two\n" * 20_000)
    with pytest.raises(UserError, match=r"captions.csv, line \d+ is not CSV .*: is a quote not closed\?"):
        Folder(str(folder))


def test_no_folder_no_pictures(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        Folder(str(tmp_path))
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match="is not a folder"):
            Folder(path)
