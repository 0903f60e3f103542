"""TFDS: prepared ArrayRecord and TFRecord data sets, fields found by type, and what is missing."""

import io
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.readers.tfds import Tfds, open_builder
from dalle_jax.data.records import BadReason, BadSample
from dalle_jax.data.sources import open_source
from dalle_jax.errors import UserError


class Captioned(tfds.core.GeneratorBasedBuilder):
    """Images with captions as COCO has them, a label and a second text."""

    VERSION = tfds.core.Version("1.0.0")
    png: bytes = b""

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
                    "title": tfds.features.Text(),
                    "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(4)}

    def _generate_examples(self, count=0):
        for i in range(count):
            captions = [{"id": j, "text": f"caption {j} of {i}"} for j in range(2)]
            yield i, {"image": io.BytesIO(self.png), "captions": captions, "title": f"title {i}", "kind": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, png):
    Captioned.png = png(5)
    builder = Captioned(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return builder


def test_array_record(prepared, png):
    source = open_source(DataConfig(source=SourceKind.TFDS, path=str(prepared.data_path), eval_split="test"))
    assert len(source) == 12 and source.has_labels
    record = source[3]
    assert record.image == png(5) and record.key == "train/3" == source.key(3)
    number = record.captions[0].split()[-1]
    assert record.captions == (f"caption 0 of {number}", f"caption 1 of {number}")
    assert record.label == int(number) % 2
    assert pickle.loads(pickle.dumps(source))[3] == record


def test_damaged_and_missing_records_are_bad_samples(prepared, tmp_path):
    folder = shutil.copytree(prepared.data_path, tmp_path / "captioned" / "1.0.0")
    source = Tfds(open_builder(str(folder)), "train")
    (file,) = folder.glob("*train*.array_record*")
    data = bytearray(file.read_bytes())
    data[100:-100] = bytes(len(data) - 200)
    file.write_bytes(data)
    with pytest.raises(BadSample) as bad:
        source[3]
    assert bad.value.reason is BadReason.TRUNCATED
    source = Tfds(open_builder(str(_as_tfrecord(prepared, tmp_path / "other"))), "train")
    next((tmp_path / "other").rglob("*train*.tfrecord*")).unlink()
    with pytest.raises(BadSample) as bad:
        source[3]
    assert bad.value.reason is BadReason.MISSING


def test_fields_and_slices(prepared):
    source = Tfds(prepared, "train[:25%]", caption_field="title", label_field="kind")
    assert len(source) == 3 and source[0].captions[0].startswith("title ")


def test_errors(prepared, tmp_path):
    with pytest.raises(UserError, match=r"has no split 'tests', did you mean 'test'\? \(it has: "):
        Tfds(prepared, "tests")
    with pytest.raises(UserError, match=r"no field 'titel', did you mean 'title'\? \(config.data.caption_field"):
        Tfds(prepared, "train", caption_field="titel")
    with pytest.raises(UserError, match="holds no prepared TFDS data set"):
        open_builder(str(tmp_path))
    with pytest.raises(UserError, match="no TFDS data set 'mnsit', did you mean 'mnist'"):
        open_builder("mnsit")
    with pytest.raises(UserError, match="config.data.path is empty"):
        open_builder("")
    with pytest.raises(UserError, match=r"'captioned' is not prepared in .*: run python -c"):
        Tfds(Captioned(data_dir=str(tmp_path)), "train")
    with pytest.raises(UserError, match="no directory 'eurosat/rbg'.*no such config or version, did you mean 'rgb'"):
        open_builder("eurosat/rbg")
    with pytest.raises(UserError, match=r"no directory 'mnist/train'.*no such config or version \(configs: none\)"):
        open_builder("mnist/train")
    with pytest.raises(UserError, match=r"'eurosat/all' is not prepared in .*builder\('eurosat/all'"):
        Tfds(tfds.builder("eurosat/all", data_dir=str(tmp_path)), "train")


def test_tfrecord_reads_the_same(prepared, tmp_path):
    folder = _as_tfrecord(prepared, tmp_path)
    builder = open_builder(str(folder))
    assert builder.info.file_format is tfds.core.FileFormat.TFRECORD
    for split in ("train", "train[5:8]"):
        ours, reference = Tfds(builder, split), Tfds(prepared, split)
        assert [ours[i] for i in range(len(ours))] == [reference[i] for i in range(len(reference))]
    file = next(folder.glob("*train*.tfrecord*"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"\.tfrecord.* is cut short: the record at byte \d+"):
        Tfds(builder, "train")


@pytest.mark.parametrize("first", range(5))
def test_a_damaged_tfrecord_is_a_bad_sample(prepared, tmp_path, first):
    """Whatever byte it hits, one sample is bad, or its content is another: never another kind of error.

    Protocol buffers write the fields in an order that differs from process to process: each comes first once.
    """
    folder = _as_tfrecord(prepared, tmp_path, first)
    file = next(folder.glob("*train*.tfrecord*"))
    whole, source = file.read_bytes(), Tfds(open_builder(str(folder)), "train")
    reasons = []
    for place in range(12, 92):  # of the first record, behind its length and the checksum of that
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            record = source[0]
            assert isinstance(record.image, bytes) and record.label in (-1, 0, 1)
        except BadSample as bad:
            reasons.append(bad.reason)
        assert source[1].captions
    assert len(reasons) > 20 and set(reasons) == {BadReason.TRUNCATED}


def _fields_from(record: bytes, first: int) -> bytes:
    """The same `tf.train.Example` with its fields sorted by name, then turned round so that another comes first."""
    example = tf_example_pb2.Example.FromString(record)
    fields = sorted(example.features.feature.items())
    parts = [tf_feature_pb2.Features(feature={name: value}).SerializeToString() for name, value in fields]
    # Messages that are joined are one message with the fields of all.
    return b"".join(b"\x0a" + _varint(len(part)) + part for part in parts[first:] + parts[:first])


def _varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + _varint(number >> 7) if number > 0x7F else bytes([number])


def _as_tfrecord(builder: tfds.core.DatasetBuilder, tmp_path: Path, first: int = 0) -> Path:
    """The same data set in TFRecord framing, which only TensorFlow writes (checksums, which nobody checks, are 0)."""
    folder = tmp_path / "captioned" / "1.0.0"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        raw = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        (name,) = builder.info.splits[split].filenames
        records = [_fields_from(raw[i], first) for i in range(len(raw))]
        framed = b"".join(struct.pack("<QI", len(record), 0) + record + bytes(4) for record in records)
        (folder / name.replace("array_record", "tfrecord")).write_bytes(framed)
    for file in Path(str(builder.data_path)).glob("*.json"):
        (folder / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    for file in Path(str(builder.data_path)).glob("*.txt"):
        (folder / file.name).write_text(file.read_text())
    return folder
