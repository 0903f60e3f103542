"""Tables of images and captions: what is read, and what ends in an error that names the line."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_jax.data.readers.delimited import rows
from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.readers.tables import IMAGE_FIELDS, TABLE_CAPTION_FIELDS, read_table
from dalle_jax.data.records import BadReason, BadSample
from dalle_jax.errors import UserError

CAPTIONS = [f"image number {i}, of some" for i in range(30)]


def table(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def plain(path, **fields):
    return {name: texts for name, (texts, _) in read_table(path, **fields).captions.items()}


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), st.sampled_from(",;\t|"))
def test_what_a_writer_of_csv_wrote_is_read(captions, delimiter):
    """Quotes, line breaks and delimiters in captions, as Python's and pandas' writers quote them."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["file_name", "caption"], *([f"{i}.jpg", caption] for i, caption in enumerate(captions))])
    found = [(row["file_name"], row["caption"]) for _, row in rows("t", file.getvalue(), IMAGE_FIELDS)]
    assert found == [(f"{i}.jpg", caption) for i, caption in enumerate(captions)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "| "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_delimiters_and_encodings(tmp_path, delimiter, encoding, newline):
    lines = [("id", "File_Name", "Caption"), ("0", "a.jpg", "un café; a | b\t, c"), ("1", "b.jpg", "two")]
    quoted = [[f'"{cell}"' if "café" in cell else cell for cell in line] for line in lines]
    joined = newline.join((delimiter if delimiter != "| " else "|").join(line) for line in quoted)
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    path = table(tmp_path, "captions.csv", mark + joined, encoding)
    assert plain(path) == {"a.jpg": ("un café; a | b , c",), "b.jpg": ("two",)}


QUOTES = {
    "never closed": (10, '"half closed, a red kettle', None),
    "closed by a quoted caption below": (10, '"half closed', (12, '"a cat, asleep"')),
    "closed by an inch mark below": (10, '"half closed', (20, 'a disc of 5"')),
    "closed in the next row": (10, '"half closed', (11, 'a disc of 5"')),
    "a comma without quotes": (10, "a cat, asleep", None),
    "text after a closing quote": (10, '"a cat" asleep', None),
}


@pytest.mark.parametrize("fault", QUOTES)
@pytest.mark.parametrize("caption_first", [False, True])
@pytest.mark.parametrize("extension", [".jpg", ""])
def test_a_fault_of_quotes_names_its_line(tmp_path, fault, caption_first, extension):
    line, text, other = QUOTES[fault]
    captions = [f"caption {i}" for i in range(30)]
    captions[line] = text
    if other:
        captions[other[0]] = other[1]
    cells = [("file_name", "caption"), *((f"{i:03d}{extension}", caption) for i, caption in enumerate(captions))]
    content = "\n".join(",".join(reversed(row) if caption_first else row) for row in cells) + "\n"
    with pytest.raises(UserError, match=rf"line {line + 2} "):
        read_table(table(tmp_path, "captions.csv", content))


def test_legal_captions_of_several_lines(tmp_path):
    content = 'file_name,caption\na.jpg,"one\ntwo, three\n\n""four"""\nb.jpg,"x,\n y"\n\n\nc.jpg,z\n'
    found = plain(table(tmp_path, "captions.csv", content))
    assert found == {"a.jpg": ('one two, three "four"',), "b.jpg": ("x, y",), "c.jpg": ("z",)}


def test_rows_of_fewer_fields_are_counted(tmp_path):
    """Flickr30k's results.csv has such a row."""
    content = "image_name| comment_number| comment\na.jpg| 0| one\na.jpg| 1   two\nb.jpg| 0| three\n"
    found = read_table(table(tmp_path, "results.csv", content))
    assert found.captions == {"a.jpg": (("one",), None), "b.jpg": (("three",), None)}
    (left_out,) = found.left_out
    assert (left_out.count, left_out.example) == (1, "line 3")


def test_tabs_without_quoting(tmp_path):
    content = 'caption\tfile\n"happy birthday " said the card\ta.jpg\n"a ""quoted"" one"\tb.jpg\n'
    found = plain(table(tmp_path, "captions.tsv", content))
    assert found == {"a.jpg": ('"happy birthday " said the card',), "b.jpg": ('a "quoted" one',)}
    content = 'caption\tfile\n"two lines\nwith a\ttab"\ta.jpg\nx\tb.jpg\n'
    assert plain(table(tmp_path, "captions.tsv", content)) == {"a.jpg": ("two lines with a tab",), "b.jpg": ("x",)}


def test_two_columns_without_a_header(tmp_path):
    assert plain(table(tmp_path, "a.tsv", "0.jpg\tone\n1.jpg\ttwo\n")) == {"0.jpg": ("one",), "1.jpg": ("two",)}
    assert plain(table(tmp_path, "c.tsv", "a, b\thttp://x/0.jpg\nc\thttp://x/1.jpg\n")) == {
        "0.jpg": ("a, b",),
        "1.jpg": ("c",),
    }
    assert plain(table(tmp_path, "b.csv", "one,0.png\ntwo,1.png\n")) == {"0.png": ("one",), "1.png": ("two",)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file_name,caption\n\0\0", "holds zero bytes"),
        ("a.json", '{"annotations": [{"image_id": 1, "caption": "x"}]}', "names no file for image 1"),
        ("a.json", '{"annotations": [{"caption": "x"}]}', "lack 'image_id'"),
        ("a.json", "[1]", "entry 0 is not a JSON object"),
        ("a.json", '{"a.jpg": "one"}', "neither a list of JSON objects nor COCO's"),
        ("a.json", "{", "is not JSON"),
        ("a.token", "0.jpg#0\tone\nno tab\n", "line 2 has no tab"),
        ("a.parquet", "PAR1", "is not a Parquet file"),
    ],
)
def test_tables_that_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_table(table(tmp_path, name, content))


def test_json_in_its_forms(tmp_path):
    wanted = {"a.jpg": ("one", "uno"), "b.jpg": ("two",)}
    rows = [{"file_name": "a.jpg", "text": ["one", "uno"]}, {"file_name": "b.jpg", "text": "two"}]
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}, {"id": 9, "file_name": "c.jpg"}],
        "annotations": [{"image_id": i, "caption": text} for i, text in ((7, "one"), (8, "two"), (7, "uno"))],
    }
    lines = "\n".join(map(json.dumps, rows))
    assert plain(table(tmp_path, "1.json", json.dumps(rows))) == wanted
    assert plain(table(tmp_path, "3.json", lines)) == plain(table(tmp_path, "4.jsonl", lines)) == wanted
    assert plain(table(tmp_path, "5.json", json.dumps(coco))) == wanted | {"c.jpg": ()}


def test_a_caption_that_is_no_utf8_is_bad_alone(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_bytes(b"file_name,caption\na.jpg,caf\xe9\nb.jpg,two\na.jpg,readable\nc.jpg,\xff\n")
    found = read_table(str(path)).captions
    assert found["a.jpg"] == (("readable",), None) and found["b.jpg"] == (("two",), None)
    assert found["c.jpg"] == ((), BadReason.CAPTION_ENCODING)


def test_the_fields_of_captions(tmp_path):
    path = table(tmp_path, "x.csv", "id,file_name,licence\n1,a.jpg,CC0\n")
    assert read_table(path).caption_fields == ()
    assert read_table(path, caption_field="licence").captions == {"a.jpg": (("CC0",), None)}
    for name in TABLE_CAPTION_FIELDS:
        assert read_table(table(tmp_path, "y.csv", f"{name.upper()},PATH\none,a.jpg\n")).captions["a.jpg"][0] == (
            "one",
        )


@pytest.fixture
def folder(tmp_path, png):
    for i, name in enumerate(("a b.jpg", "sub/c.PNG", "café.png", "twice.jpg", "twice.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    return tmp_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a b.jpg ", "a b.jpg"),
        (" sub\\c.png", "sub/c.PNG"),
        ("sub/c", "sub/c.PNG"),
        ("cafe\u0301.png", "café.png"),
        ("./a b.jpg", "./a b.jpg"),  # a path as it is, and so the key that it was
        ("sub/../a b.jpg", "sub/../a b.jpg"),
    ],
)
def test_names_as_people_write_them(folder, png, written, meant):
    (folder / "captions.csv").write_text(f"file_name,caption\n{written},x\n")
    source = Folder(str(folder))
    assert [source.key(i) for i in range(len(source))] == [meant]
    assert source[0].image == (folder / meant).read_bytes() and source.captions(0) == ("x",)


def test_a_name_that_may_be_of_two_images_is_of_none(folder):
    (folder / "captions.csv").write_text("file_name,caption\ntwice,x\na b.jpg,y\n")
    source = Folder(str(folder))
    assert [source.key(i) for i in range(len(source))] == ["a b.jpg"]
    assert any("not in" in left.reason and left.example == "twice" for left in source.left_out)


def test_one_image_under_two_names_is_one_sample(folder):
    (folder / "captions.csv").write_text("file_name,caption\n./a b.jpg,x\na b.jpg,y\na b,z\n")
    source = Folder(str(folder))
    assert [(source.key(i), source.captions(i)) for i in range(len(source))] == [("./a b.jpg", ("x", "y", "z"))]


def test_images_outside_of_the_folder(folder, tmp_path):
    inner = folder / "tables"
    inner.mkdir()
    (inner / "captions.csv").write_text(f"file_name,caption\n../sub/c.PNG,x\n{folder}/a b.jpg,y\n../sub/none.png,z\n")
    source = Folder(str(inner))
    assert [source.key(i) for i in range(len(source))] == ["../sub/c.PNG", f"{folder}/a b.jpg"]
    assert source[1].image == (folder / "a b.jpg").read_bytes()


def test_an_image_that_goes_away_is_a_bad_sample(folder):
    (folder / "captions.csv").write_text("file_name,caption\na b.jpg,x\n")
    source = Folder(str(folder))
    (folder / "a b.jpg").unlink()
    assert source.captions(0) == ("x",)
    with pytest.raises(BadSample) as error:
        source[0]
    assert error.value.reason is BadReason.MISSING


# Columns of one name, and tables without rows


def test_several_columns_of_captions_are_several_captions(tmp_path):
    path = table(tmp_path, "captions.csv", "file_name,caption,caption,caption\na.jpg,one,two,\nb.jpg,three\n")
    assert plain(path) == {"a.jpg": ("one", "two"), "b.jpg": ("three",)}
    path = table(tmp_path, "other.tsv", "file_name\ttitle\ttitle\na.jpg\tone\ttwo\n")
    assert plain(path, caption_field="title") == {"a.jpg": ("one", "two")}


def test_two_columns_that_name_images_are_refused(tmp_path):
    path = table(tmp_path, "captions.csv", "file_name,file_name,caption\na.jpg,b.jpg,one\n")
    with pytest.raises(UserError, match=r"captions.csv, line 2 has 'file_name' twice: .*give one another name"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.jsonl", '{"file_name": "a.jpg", "file_name": "b.jpg", "caption": "one"}\n'),
        ("captions.json", '[{"file_name": "a.jpg", "file_name": "b.jpg", "caption": "one"}]'),
        (
            "captions_val.json",
            '{"images": [{"id": 1, "file_name": "a.jpg", "file_name": "b.jpg"}], "annotations": [{"image_id": 1}]}',
        ),
    ],
)
def test_an_object_that_names_two_images_is_refused(tmp_path, name, content):
    with pytest.raises(UserError, match=f"{name}.* has 'file_name' twice"):
        read_table(table(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "file_name,caption\ra.jpg,one\rb.jpg,two\r"),
        ("captions.csv", "file_name;caption\ra.jpg;one, and more, and more\rb.jpg;two\r"),
        ("all.token", "a.jpg#0\tone\rb.jpg#0\ttwo\r"),
        ("captions.jsonl", '{"file_name": "a.jpg", "caption": "one"}\r{"file_name": "b.jpg", "caption": "two"}\r'),
    ],
)
def test_lines_that_end_in_cr(tmp_path, name, content):
    assert list(plain(table(tmp_path, name, content))) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("text", ["", "\n\n", "file_name,caption\n", "file_name,caption\n\n"])
def test_a_table_without_rows_says_so(tmp_path, text):
    (tmp_path / "a.jpg").touch()
    table(tmp_path, "metadata.csv", text)
    with pytest.raises(UserError, match=r"metadata.csv has no rows.* write a row an image"):
        Folder(str(tmp_path))


def test_a_split_without_rows_is_counted(tmp_path):
    for split, text in (("train", '{"file_name": "a.jpg", "text": "a cat"}\n'), ("test", "")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.jpg").touch()
        table(tmp_path / split, "metadata.jsonl", text)
    folder = Folder(str(tmp_path))
    assert len(folder) == 1
    assert ("tables without rows", 1, "test/metadata.jsonl") in [
        (f.reason, f.count, f.example) for f in folder.left_out
    ]


@pytest.mark.parametrize("name", ["captions.txt", "results.csv", "metadata.json", "some.tsv", "captions.csv"])
@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "<html>404</html>"])
def test_what_came_in_place_of_a_table_is_not_passed_over(tmp_path, name, content):
    """Also where files of that name are tables or something else, as their first row says."""
    (tmp_path / "a.jpg").touch()
    table(tmp_path, name, content)
    with pytest.raises(UserError, match=rf"{name} is an? (pointer of Git LFS.*git lfs pull|HTML page.*anew)"):
        Folder(str(tmp_path))
