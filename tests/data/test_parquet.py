"""Parquet files with the images in them, as Hugging Face stores data sets."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_jax import storage
from dalle_jax.data.captions import all_captions
from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.readers.parquet import Parquet
from dalle_jax.data.readers.tables import read_table
from dalle_jax.data.records import BadReason, BadSample
from dalle_jax.data.sources import open_source
from dalle_jax.errors import UserError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LABELS = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


@pytest.fixture
def write(tmp_path, png):
    """`write(name, first, count)`: rows in groups of three; `columns` replaces or adds some, None takes one away."""

    def write(name="a.parquet", first=0, count=10, **columns):
        numbers = range(first, first + count)
        values = {
            "image": pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in numbers], IMAGE),
            "text": pa.array([f"image {i}" for i in numbers]),
            "label": pa.array([i % 2 for i in numbers]),
        } | columns
        table = pa.table({name: value for name, value in values.items() if value is not None})
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(LABELS)}), path, row_group_size=3)
        return str(path)

    return write


def test_rows_of_several_files_in_any_order(write, png):
    paths = [write("train-0.parquet", 0, 7), write("train-1.parquet", 7, 0), write("train-2.parquet", 7, 4)]
    source = pickle.loads(pickle.dumps(Parquet(paths)))
    assert len(source) == 11 and source.class_names == ("cat", "dog") and source.has_labels
    with ThreadPoolExecutor(4) as pool:
        order = np.random.default_rng(0).permutation(11).tolist()
        for i, record in zip(order, pool.map(source.__getitem__, order), strict=True):
            assert (record.image, record.captions, record.label) == (png(i), (f"image {i}",), i % 2)
            assert record.key == source.key(i)
    keys = [f"train-0.parquet/{i}" for i in range(7)] + [f"train-2.parquet/{i}" for i in range(4)]
    assert [source.key(i) for i in range(11)] == keys
    with pytest.raises(IndexError):
        source[11]


def test_keys_follow_the_folder_where_names_repeat(write):
    paths = [write("en/0.parquet", 0, 2), write("de/0.parquet", 2, 2)]
    source = Parquet(paths)
    assert [source.key(i) for i in range(4)] == ["en/0.parquet/0", "en/0.parquet/1", "de/0.parquet/0", "de/0.parquet/1"]


def test_captions_are_read_without_images(write, monkeypatch):
    source, read = Parquet([write()]), []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, i, columns: read.append(columns) or whole(self, i, columns=columns),
    )
    assert list(all_captions(source)) == [f"image {i}" for i in range(10)]
    assert all(columns == ["text"] for columns in read)


def test_a_group_is_read_once_while_it_is_kept(write, monkeypatch):
    source, read = Parquet([write()]), []
    monkeypatch.setattr(source, "_read", lambda *a, read_=source._read: read.append(a[0]) or read_(*a))
    for i in range(10):
        source[i]
    assert read == [0, 1, 2, 3]


def test_bytes_in_a_column_and_fields_by_name(write, png):
    path = write(image=None, jpg=pa.array([png(i) for i in range(10)]), alt=pa.array([["x", "y"]] * 10), text=None)
    source = Parquet([path], caption_field="alt")
    assert (source[3].image, source[3].captions) == (png(3), ("x", "y"))
    assert Parquet([path])[3].captions == ()
    assert not Parquet([path], label_field="alt").has_labels
    for option, value, message in (
        ("caption_field", "atl", "no column 'atl', did you mean 'alt'"),
        ("image_field", "alt", "'alt' holds no bytes"),
        ("label_field", "none", "no column 'none'"),
    ):
        with pytest.raises(UserError, match=message):
            Parquet([path], **{option: value})


def test_by_config(write, tmp_path):
    for split, first in (("train", 0), ("test", 10)):
        write(f"{split}-0.parquet", first, text=None)
    config = DataConfig(
        source=SourceKind.PARQUET,
        path=f"{tmp_path}/{{split}}-*.parquet",
        eval_split="test",
        caption_templates=("a {}",),
    )
    assert [open_source(config, split)[1].captions for split in ("train", "eval")] == [("a dog",)] * 2
    whole = DataConfig(source=SourceKind.PARQUET, path=str(tmp_path), eval_fraction=0.3)
    assert len(open_source(whole)) + len(open_source(whole, "eval")) == 20


def test_files_that_are_refused(write, tmp_path):
    good = write()
    (tmp_path / "cut.parquet").write_bytes(storage.read(good)[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet is not a Parquet file, or cut short"):
        Parquet([good, str(tmp_path / "cut.parquet")])
    with pytest.raises(UserError, match=r"b\.parquet has no column 'text', which .*a\.parquet has"):
        Parquet([good, write("b.parquet", text=None)])
    with pytest.raises(UserError, match="no column with the bytes of images .*config.data.source=folder"):
        Parquet([write("c.parquet", image=None)])
    with pytest.raises(UserError, match="has no rows"):
        Parquet([write("d.parquet", 0, 0)])


def test_bad_samples(write, tmp_path, png):
    images = pa.array([{"bytes": png(0), "path": "0.png"}, {"bytes": None, "path": "1.png"}, None], IMAGE)
    texts = _invalid([b"caf\xe9", b"x", b"y"])
    path = write(count=3, image=images, text=texts)
    source = Parquet([path])
    for i, reason in enumerate((BadReason.CAPTION_ENCODING, BadReason.MISSING, BadReason.MISSING)):
        with pytest.raises(BadSample) as error:
            source[i]
        assert error.value.reason is reason
    whole = storage.read(write("damaged.parquet"))
    damaged = Parquet([str(tmp_path / "damaged.parquet")])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + b"\xff" * 300 + whole[304:])
    with pytest.raises(BadSample) as error:
        damaged[0]
    assert error.value.reason is BadReason.TRUNCATED
    (tmp_path / "damaged.parquet").unlink()
    with pytest.raises(BadSample) as error:
        damaged[9]
    assert error.value.reason is BadReason.MISSING


def _invalid(texts):
    """Bytes that a careless writer called a text."""
    array = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view"])
def test_every_type_of_bytes(write, png, kind):
    images = pa.array([png(i) for i in range(4)], getattr(pa, kind)())
    views = pa.array([f"image {i}" for i in range(4)], pa.string_view() if kind == "binary_view" else pa.large_string())
    source = Parquet([write(count=4, jpg=images, text=views)], image_field="jpg")
    assert source[2].image == png(2) and source[2].captions == ("image 2",)


def test_columns_of_one_name(tmp_path, png):
    images, texts, more = pa.array([png(0)]), pa.array(["one"]), pa.array([["two", "three"]])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([images, texts, more], ["image", "text", "text"]), path)
    assert Parquet([str(path)])[0].captions == Parquet([str(path)]).captions(0) == ("one", "two", "three")
    pq.write_table(pa.Table.from_arrays([images, texts, texts, texts], ["image", "text", "x", "x"]), path)
    assert Parquet([str(path)])[0].captions == ("one",)
    pq.write_table(pa.Table.from_arrays([images, images, texts], ["image", "image", "text"]), path)
    with pytest.raises(UserError, match=r"a.parquet has two columns 'image': give one another name"):
        Parquet([str(path)], image_field="image")
    with pytest.raises(UserError, match=r"a.parquet has two columns 'image': give one another name"):
        Parquet([str(path)])
    named = pa.array(["a.jpg"])
    pq.write_table(pa.Table.from_arrays([named, texts, more, named, named], ["image", "text", "text", "x", "x"]), path)
    assert read_table(str(path)).captions == {"a.jpg": (("one", "two", "three"), None)}
    pq.write_table(pa.Table.from_arrays([named, named, texts], ["file_name", "file_name", "text"]), path)
    with pytest.raises(UserError, match=r"a.parquet, row 0 has 'file_name' twice"):
        read_table(str(path))


def test_columns_of_a_dictionary(write, png):
    """As pandas writes a category, and Arrow what repeats."""
    images = pa.array([png(i % 2) for i in range(4)]).dictionary_encode()
    texts, labels = pa.array(["a", "b", "a", "b"]).dictionary_encode(), pa.array([7, 8, 7, 8]).dictionary_encode()
    source = Parquet([write(count=4, image=images, text=texts, label=labels)])
    assert (source[1].image, source[1].captions, source[1].label) == (png(1), ("b",), 8) and source.has_labels


def test_a_column_of_labels_without_one_is_none(write):
    assert Parquet([write(count=4, label=pa.array([None, None, 1, None], pa.int64()))]).has_labels
    assert not Parquet([write(count=4, label=pa.array([None] * 4, pa.int64()))]).has_labels
