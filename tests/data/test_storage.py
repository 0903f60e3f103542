"""Files on a disk and in a bucket alike; the bucket is an emulator on loopback, which gcsfs and ArrayRecord talk to."""

import json
import os
import pickle

import numpy as np
import pytest
from etils import epath

import clip_jax
import dalle_jax
from dalle_jax import storage
from dalle_jax.config import read_json, write_json
from dalle_jax.data import paths
from dalle_jax.data.config import Augment, DataConfig, SourceKind
from dalle_jax.data.encoded.folder import Job, damaged, finished, write_manifest
from dalle_jax.data.encoded.source import Encoded, read_manifest
from dalle_jax.data.encoded.writer import Writer
from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.readers.tar import scan
from dalle_jax.data.readers.tfds import TfRecords
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import Encoding
from dalle_jax.data.sources import open_source, splits_of
from dalle_jax.data.tokenizer import Tokenizer, train_tokenizer
from dalle_jax.errors import UserError, run_main
from dalle_jax.training.telemetry.writers import open_writers

TEXTS = [f"image {i}, déjà vu" for i in range(30)]


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path) -> str:
    """An empty folder."""
    if request.param == "disk":
        return str(tmp_path)
    request.getfixturevalue("emulator")
    return f"gs://bucket/{tmp_path.name}"


def put(place: str, name: str, data: bytes) -> str:
    path = storage.join(place, name)
    storage.write_whole(path, data)
    return path


def test_files(place):
    data = bytes(range(256)) * 300
    path = put(place, "a/b.bin", data)
    assert storage.read(path) == data and storage.size_of(path) == len(data)
    assert storage.files_in(storage.join(place, "a")) == {"b.bin": len(data)}
    assert storage.files_in(storage.join(place, "none")) == {}
    put(place, "a/c/d.txt", b"d")
    assert sorted(storage.walk(place)) == ["a/b.bin", "a/c/d.txt"]
    assert storage.glob_files(storage.join(place, "*/*.bin")) == [path]
    before = storage.version_of(path)
    put(place, "a/b.bin", data[1:])
    assert storage.version_of(path) != before
    for function in (storage.read, storage.size_of, storage.version_of, storage.Reader):
        with pytest.raises(FileNotFoundError):
            function(storage.join(place, "none"))


@pytest.mark.parametrize("spans", [[(5, 10), (20, 3)], [(0, 1), (200_000, 7), (100, 4)], [(299_990, 50), (3, 0)], []])
def test_parts_of_a_file(place, spans):
    data = np.random.default_rng(0).bytes(300_000)
    path = put(place, "x", data)
    assert storage.read_parts(path, spans) == [data[offset : offset + size] for offset, size in spans]


def test_parts_that_lie_together_come_in_one_request(emulator, tmp_path):
    path = put(f"gs://bucket/{tmp_path.name}", "x", bytes(300_000))
    for spans, requests in (([(512, 1000), (2048, 50), (3000, 9)], 1), ([(0, 10), (250_000, 10)], 2)):
        before = len(emulator.requests)
        storage.read_parts(path, spans)
        assert len(emulator.requests) - before == requests


def test_scanning(place, monkeypatch):
    monkeypatch.setattr(storage.Reader, "WINDOW", 1000)
    data = np.random.default_rng(0).bytes(5000)
    with storage.Reader(put(place, "x", data)) as reader:
        assert reader.size == 5000
        for size, offset in ((10, 0), (500, 900), (2000, 1000), (100, 4950), (5, 5000)):
            assert reader.pread(size, offset) == data[offset : offset + size]


def test_an_upload_is_whole_or_absent(place, tmp_path):
    local = tmp_path / "made"
    local.write_bytes(b"x" * 7_000_000)  # so large that it goes in pieces
    storage.upload(local, storage.join(place, "there"))
    assert storage.size_of(storage.join(place, "there")) == 7_000_000 and not local.exists()


def test_appending(place, monkeypatch):
    path = storage.join(place, "log")
    file = storage.Appended(path, b"old\n")
    file.write(b"one\n")
    file.flush()
    assert storage.read(path) in (b"old\n", b"old\none\n")  # a bucket waits a while
    file.flush(now=True)
    assert storage.read(path) == b"old\none\n"
    monkeypatch.setattr(storage.Appended, "SECONDS", 0.0)
    file.write(b"two\n")
    file.flush()
    assert storage.read(path) == b"old\none\ntwo\n"
    file.write(b"three\n")
    file.close()
    again = storage.Appended(path)
    again.write(b"four\n")
    again.close()
    assert storage.read(path) == b"old\none\ntwo\nthree\nfour\n"


def test_a_disk_that_fills_up_costs_a_log_nothing(tmp_path, monkeypatch):
    (tmp_path / "log").write_bytes(b"one\ntwo\n")

    def half(path, data):
        with open(path, "wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        storage.Appended(tmp_path / "log", b"one\n")  # what came after the checkpoint is to go
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log"], "nothing half-written is left"


def test_json_and_tokenizers(place):
    write_json(storage.join(place, "new/folder/x.json"), {"a": (1, 2)})
    assert read_json(storage.join(place, "new/folder/x.json")) == {"a": [1, 2]}
    tokenizer = train_tokenizer(TEXTS, 40, storage.join(place, "t.model"))
    assert Tokenizer(storage.join(place, "t.model")).fingerprint == tokenizer.fingerprint
    with pytest.raises(UserError, match="is missing"):
        read_json(storage.join(place, "none.json"))


def test_patterns(place):
    for name in ("a-0.tar", "a-1.tar", "b.tar", "c.txt"):
        put(place, name, b"x")
    files = [storage.join(place, name) for name in ("a-0.tar", "a-1.tar", "b.tar")]
    assert paths.expand(place, ".tar") == files
    assert paths.expand(storage.join(place, "a-{0..1}.tar"), ".tar") == files[:2]
    assert paths.expand(f"{storage.join(place, 'a-*.tar')},{files[2]}", ".tar") == files
    with pytest.raises(UserError, match=r"1 of the files .* do not exist, the first is '.*a-2\.tar'"):
        paths.expand(storage.join(place, "a-{0..2}.tar"), ".tar")
    with pytest.raises(UserError, match="matches no .tar file"):
        paths.expand(storage.join(place, "z*.tar"), ".tar")


def test_a_range_of_files_is_one_listing(emulator, tmp_path):
    place = f"gs://bucket/{tmp_path.name}"
    for i in range(20):
        put(place, f"{i:02}.tar", b"x")
    before = len(emulator.requests)
    assert len(paths.expand(storage.join(place, "{00..19}.tar"), ".tar")) == 20
    assert len(emulator.requests) - before <= 2


def test_tars(place, png, write_tar):
    members = {f"{i:02}.png": png(i) for i in range(6)} | {f"{i:02}.txt": TEXTS[i].encode() for i in range(6)}
    path = put(place, "y.tar", storage.read(write_tar("x.tar", members)))
    source = pickle.loads(pickle.dumps(WebDataset([path])))
    for i in range(6):
        assert (source[i].image, source[i].captions, source[i].key) == (png(i), (TEXTS[i],), f"{i:02}")
    *_, last = scan(path)
    with pytest.raises(UserError, match=r"cut\.tar is cut short"):
        WebDataset([put(place, "cut.tar", storage.read(path)[: last.offset + last.size // 2])])


def test_folders(place, png):
    for i in range(4):
        put(place, f"inner/{i}.png", png(i))
    put(place, "inner/2.txt", b"two\n\ntwice")
    source = Folder(place)
    assert [source.key(i) for i in range(len(source))] == [f"inner/{i}.png" for i in range(4)]
    assert (source[2].image, source[2].captions, source[3].captions) == (png(2), ("two", "twice"), ())
    put(place, "captions.csv", b"file_name,caption\ninner/1.png,one\ninner/1.png,encore une\n")
    assert (len(Folder(place)), Folder(place)[0].captions) == (1, ("one", "encore une"))
    with pytest.raises(UserError, match="is not a folder"):
        Folder(storage.join(place, "none"))


def test_tfrecords(place):
    records = [b"first", b"", b"third" * 100]
    data = b"".join(len(record).to_bytes(8, "little") + b"1234" + record + b"5678" for record in records)
    instruction = type("Instruction", (), {"filename": put(place, "x.tfrecord", data), "skip": 1, "take": 2})
    found = TfRecords([instruction])
    assert [found[i] for i in range(len(found))] == records[1:]


def test_encoding(place, list_source):
    encoding = Encoding("codec", 256, 2, 8)
    source = list_source(7)
    job = Job("train", source, Augment.NONE, 1, 0, encoding, 4, 10_000)

    def encode(images):
        return np.asarray(images[:, ::4, ::4, 0], np.int32).reshape(len(images), -1)

    writer = Writer(job, place, encode, batch_size=4, workers=0, max_bad_fraction=0.0)
    writer.write(1)
    assert list(finished(job, place)) == [1]
    writer.write(0)
    manifest = write_manifest([job], place, "commit")
    assert read_manifest(place) == manifest and damaged(manifest, place) == []
    config = DataConfig(source=SourceKind.ENCODED, path=place)
    assert splits_of(config) == ["train"]
    encoded = pickle.loads(pickle.dumps(open_source(config)))
    assert [encoded[i].captions for i in range(7)] == [source[i].captions for i in range(7)]
    epath.Path(storage.join(place, job.file(0))).unlink()
    with pytest.raises(UserError, match="1 of the 2 shards"):
        Encoded(place, "train")


def test_metrics(place):
    folder = storage.join(place, "decoder")
    for first in (0, 1):  # the second run forgets what the first wrote after step 1
        writers = open_writers("decoder", folder, first, 10)
        for step in (1, 2) if first == 0 else (2, 3):
            for writer in writers:
                writer.scalars(step, {"loss": step + first / 10})
                writer.image(step, "preview", np.zeros((4, 4, 3), np.uint8))
        for writer in writers[:2]:
            writer.flush()
        rows = [json.loads(line) for line in storage.read(f"{folder}/metrics.jsonl").decode().splitlines()]
        assert rows[-1] == ({"step": 2, "loss": 2.0} if first == 0 else {"step": 3, "loss": 3.1})
        for writer in writers:
            writer.close()
    assert [row["loss"] for row in rows] == [1.0, 2.1, 3.1]
    assert set(storage.files_in(f"{folder}/previews")) == {f"step_000000{i}.png" for i in (1, 2, 3)}
    events = storage.files_in(f"{folder}/tensorboard")
    assert events and all(size > 200 for size in events.values())


def test_without_gcsfs_it_says_so(capsys):
    def main():
        raise ImportError("Please install gcsfs to access Google Storage")

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == 'error: paths at gs:// need gcsfs: pip install ".[gcs]" in the clone\n'


def test_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.expanduser("~/x") == os.path.expanduser("~/x") == "/home/me/x"
    assert storage.expanduser("gs://~/x") == "gs://~/x"


@pytest.mark.parametrize("path", [None, "", 7])
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(UserError, match="a path is needed where .* is given"):
        storage.path_text(path)
    if path == "":
        for load in (clip_jax.load, dalle_jax.load, dalle_jax.load_codec):
            with pytest.raises(UserError, match="a path is needed where '' is given"):
                load(path)


def test_a_bucket_without_its_library_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="gs://b/run: paths at gs:// need gcsfs: pip install"):
        storage.as_path("gs://b/run")
