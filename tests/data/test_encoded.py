"""Encoding beforehand: the same shards whoever makes them, nothing half-written, and what is read from them."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dalle_jax.config import write_json
from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, DataConfig, SourceKind, TextConfig
from dalle_jax.data.encoded.folder import (
    Job,
    check_settings,
    count_written,
    damaged,
    disown,
    finished,
    write_manifest,
    write_settings,
)
from dalle_jax.data.encoded.source import Encoded, check_files, pack, pack_header, read_manifest, unpack
from dalle_jax.data.encoded.writer import Writer
from dalle_jax.data.images import decode, transforms
from dalle_jax.data.records import BadReason, BadSample, Encoding, Record, hash_key
from dalle_jax.data.sources import EVAL, TRAIN, open_source, splits_of
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError

SIZE, GRID, CROPS, SAMPLES = 8, 2, 3, 23
ENCODING = Encoding("0123456789abcdef", 256, GRID, SIZE)


def codec(images):
    """Tokens of an image: a pixel of each quarter. So it shows which crop of which image they are of."""
    assert images.shape == (4, SIZE, SIZE, 3)
    return np.asarray(images[:, ::4, ::4, 0], np.int32).reshape(len(images), -1)


@pytest.fixture(scope="module")
def source(list_source, png):
    records = [Record(png(i, 16, 12), (f"image {i}", "déjà vu"), f"key-{i}") for i in range(SAMPLES)]
    records[5] = Record(png(5)[:60], ("picture",), "key-5")
    records[9] = BadSample(BadReason.MISSING)
    records[20] = Record(png(20), (), "key-20")
    return list_source(records)


def job_of(source, split=TRAIN, **changes):
    settings = dict(augment=Augment.DALLE, crops=CROPS, seed=1, encoding=ENCODING, shard_size=5, max_pixels=10_000)
    return Job(split, source, **(settings | changes))


def write(job, folder, numbers=None, **options):
    settings = dict(batch_size=4, workers=0, max_bad_fraction=1.0)
    writer = Writer(job, str(folder), codec, **(settings | options))
    return [writer.write(i) for i in (range(job.num_shards) if numbers is None else numbers)]


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    """A finished folder, whose shards were made last first."""
    folder = tmp_path_factory.mktemp("encoded")
    jobs = [job_of(source), job_of(source, EVAL, augment=Augment.NONE, crops=1)]
    write_settings(jobs, str(folder))
    for job in jobs:
        write(job, folder, range(job.num_shards - 1, -1, -1))
    write_manifest(jobs, str(folder), "a commit")
    return folder


def test_records_survive():
    for size, dtype in ((1 << 16, np.uint16), (1 << 17, np.int32)):
        record = Record(b"image", ("one", "déjà \N{GRINNING FACE}"), "a/\udcff")
        tokens = np.array([[0, 1, 2, 3], [size - 1, 5, 6, 7]], np.int32)
        data = pack(pack_header(record), tokens, size)
        assert data.endswith(tokens.astype(dtype).tobytes())
        back = unpack(data, Encoding("", size, 2, 8))
        assert (back.image, back.captions, back.key) == (b"", record.captions, record.key)
        assert np.array_equal(back.tokens, tokens) and back.tokens.dtype == np.int32
        with pytest.raises(ValueError, match="there is no token"):
            unpack(data, Encoding("", size - 1, 2, 8))
        with pytest.raises(ValueError):
            unpack(data[:-1], Encoding("", size, 2, 8))


def test_manifest(folder, source):
    manifest = read_manifest(str(folder))
    assert (manifest.encoding, manifest.seed, manifest.commit) == (ENCODING, 1, "a commit")
    split = manifest.splits[TRAIN]
    bad = {"missing": 1, "no_caption": 1, "truncated": 1}
    assert (split.samples, split.records, split.bad, split.crops) == (SAMPLES, SAMPLES - 3, bad, CROPS)
    assert [(shard.samples, shard.records) for shard in split.shards] == [(5, 5), (5, 3), (5, 5), (5, 5), (3, 2)]
    assert split.shards[1].bad == {"missing": 1, "truncated": 1}
    assert split.source_fingerprint == source.fingerprint()
    assert damaged(manifest, str(folder)) == []
    assert not list(folder.rglob("*.tmp"))


def test_each_record_holds_the_crops_of_its_picture(folder, source):
    encoded = Encoded(str(folder), TRAIN)
    good = [i for i in range(SAMPLES) if i not in (5, 9, 20)]
    assert len(encoded) == len(good)
    for place, i in enumerate(good):
        record = encoded[place]
        assert (record.key, record.captions) == (f"key-{i}", (f"image {i}", "déjà vu"))
        picture = decode.decode(source[i].image, max_pixels=10_000)
        for crop, tokens in enumerate(record.tokens):
            rng = np.random.default_rng([1, hash_key(f"key-{i}"), crop])
            expected = transforms.dalle_augment(picture, SIZE, rng)
            assert np.array_equal(tokens, codec(np.stack([expected] * 4))[0])
    assert len({tokens.tobytes() for place in range(20) for tokens in encoded[place].tokens}) > 30
    (held_out,) = Encoded(str(folder), EVAL)[0].tokens
    whole = transforms.dalle_inference(decode.decode(source[0].image, max_pixels=10_000), SIZE)
    assert np.array_equal(held_out, codec(np.stack([whole] * 4))[0])


def test_shards_are_the_same_whoever_makes_them(folder, source, tmp_path):
    job = job_of(source)
    for process in (1, 0):
        write(job, tmp_path, range(process, job.num_shards, 2))
    assert write_manifest([job], str(tmp_path), "").splits[TRAIN] == read_manifest(str(folder)).splits[TRAIN]


def test_what_was_finished_stays_and_the_rest_is_made(source, tmp_path):
    job = job_of(source)
    assert finished(job, str(tmp_path)) == {}
    made = write(job, tmp_path, [0, 1, 3])
    (tmp_path / job.file(2)).write_bytes(b"half")  # a shard without its `.json`: killed between the two
    (tmp_path / job.file(4)).with_suffix(".array_record.tmp").write_bytes(b"half")
    with (tmp_path / job.file(1)).open("ab") as file:
        file.write(b"damage")
    assert finished(job, str(tmp_path)) == {0: made[0], 3: made[2]}
    assert count_written(job, str(tmp_path)) == 3
    disown(job, str(tmp_path), [1, 2, 4])  # so that who waits for others does not take a damaged shard for theirs
    assert count_written(job, str(tmp_path)) == 2
    with pytest.raises(UserError, match="no .*manifest.json.*run the same command again"):
        Encoded(str(tmp_path), TRAIN)
    write(job, tmp_path, [1, 2, 4])
    write_manifest([job], str(tmp_path), "")
    assert len(Encoded(str(tmp_path), TRAIN)) == 20 and not list(tmp_path.rglob("*.tmp"))


def test_a_folder_from_before_max_pixels_was_written_down(folder, source, tmp_path):
    written = json.loads((folder / "encoding.json").read_text())
    del written[TRAIN]["max_pixels"]
    (tmp_path / "encoding.json").write_text(json.dumps(written))
    check_settings([job_of(source)], str(tmp_path))


CHANGES = [{"crops": 4}, {"seed": 2}, {"augment": Augment.DVAE}, {"shard_size": 4}, {"max_pixels": 77}]


@pytest.mark.parametrize("changes", CHANGES)
def test_a_folder_of_another_encoding_is_refused(folder, source, changes):
    ((name, value),) = changes.items()
    value = getattr(value, "value", value)
    with pytest.raises(UserError, match=f"another encoding: {name} .* there, '?{value}'? now"):
        check_settings([job_of(source, **changes)], str(folder))


def test_another_codec_or_other_data_are_refused(folder, source, list_source):
    with pytest.raises(UserError, match=r"codec \('0123456789abcdef' there, 'f' now\)"):
        check_settings([job_of(source, encoding=Encoding("f", 256, GRID, SIZE))], str(folder))
    other = list_source([*source.records[:-1], Record(np.zeros((9, 9, 3), np.uint8), ("x",), "key-22")])
    check_settings([job_of(list_source(list(source.records)))], str(folder))
    with pytest.raises(UserError, match="source_fingerprint"):
        check_settings([job_of(other)], str(folder))


def test_too_many_bad_samples_stop_it(list_source, png, tmp_path):
    records = [Record(png(i), ("x",), str(i)) for i in range(12)] + [Record(b"<html>", ("x",), "bad")] * 12
    with pytest.raises(UserError, match=r"11 of 23 samples read from a list are bad \(not_a_picture 11, such as key-"):
        write(job_of(list_source(records), shard_size=30), tmp_path, max_bad_fraction=0.01)
    assert not list(tmp_path.rglob("*.array_record"))


def test_a_full_disk_says_so(list_source, tmp_path):
    size = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True)
    if size.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        pictures = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
        records = [Record(picture, (str(i) * 300,), str(i)) for i, picture in enumerate(pictures)]
        with pytest.raises(OSError, match="No space left on device") as error:
            write(job_of(list_source(records), shard_size=60, augment=Augment.NONE, crops=1), tmp_path)
        assert error.value.errno == errno.ENOSPC
        assert not list(tmp_path.rglob("*.json"))
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.fixture
def copy(folder, tmp_path):
    """A folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def shard(folder: Path, number: int = 0) -> Path:
    return sorted((folder / TRAIN).glob("*.array_record"))[number]


def test_missing_and_damaged_shards(copy):
    manifest = read_manifest(str(copy))
    flipped = bytearray(shard(copy).read_bytes())
    flipped[len(flipped) - 10] ^= 255
    shard(copy).write_bytes(flipped)
    assert damaged(manifest, str(copy)) == [manifest.splits[TRAIN].shards[0].file]
    check_files(str(copy), manifest.splits[TRAIN].shards)
    shard(copy).write_bytes(flipped[:-1])
    with pytest.raises(UserError, match=r"00000-of-00005.array_record has \d+ bytes instead of \d+: it is damaged"):
        Encoded(str(copy), TRAIN)
    os.remove(shard(copy))
    with pytest.raises(UserError, match="1 of the 5 shards .* are missing, the first is train/00000-of-00005"):
        Encoded(str(copy), TRAIN)
    assert damaged(manifest, str(copy)) == [manifest.splits[TRAIN].shards[0].file]


def test_a_damaged_record_is_a_bad_sample(copy):
    data = bytearray(shard(copy).read_bytes())
    data[100] ^= 255
    shard(copy).write_bytes(data)
    encoded, faults = Encoded(str(copy), TRAIN), []
    for i in range(len(encoded)):
        try:
            encoded[i]
        except BadSample as error:
            faults.append((i, error.reason))
    assert faults == [(0, BadReason.TRUNCATED)]


def test_other_folders_and_versions(copy, tmp_path):
    with pytest.raises(UserError, match="has no split 'evil', did you mean 'eval'"):
        Encoded(str(copy), "evil")
    with pytest.raises(UserError, match="there is no .*none/manifest.json"):
        Encoded(str(tmp_path / "none"), TRAIN)
    record = json.loads((copy / "manifest.json").read_text())
    write_json(copy / "manifest.json", record | {"format_version": 7})
    with pytest.raises(UserError, match="format version 7, and this version reads 1"):
        Encoded(str(copy), TRAIN)
    write_json(copy / "manifest.json", record | {"extra": 7})
    with pytest.raises(UserError, match="extra"):
        Encoded(str(copy), TRAIN)


@pytest.fixture(scope="module")
def make(folder):
    tokenizer = train_tokenizer([f"image {i} déjà vu" for i in range(60)], 40)

    def batches(source=None, **options):
        source = source or Encoded(str(folder), TRAIN)
        settings = dict(batch_size=10, image_size=SIZE, augment=Augment.DALLE, seed=3, tokenizer=tokenizer)
        return Batches(source, **(settings | {"text": TextConfig(24)} | options))

    return batches


def test_batches_draw_one_crop_and_one_caption(make, folder):
    encoded, batches = Encoded(str(folder), TRAIN), make()
    batch = batches[0]
    assert set(batch) == {"image_tokens", "text"} and batch["image_tokens"].dtype == np.int32
    owner = {crop.tobytes(): (i, c) for i in range(20) for c, crop in enumerate(encoded[i].tokens)}
    drawn = [[owner[row.tobytes()] for n in (2 * e, 2 * e + 1) for row in batches[n]["image_tokens"]] for e in range(6)]
    for epoch in drawn:
        assert sorted(i for i, _ in epoch) == list(range(20))
    assert {c for epoch in drawn for _, c in epoch} == set(range(CROPS))
    for count in (1, 2):
        parts = [make(rows=np.split(np.arange(10), count)[i])[7] for i in range(count)]
        assert np.array_equal(np.concatenate([part["image_tokens"] for part in parts]), batches[7]["image_tokens"])


def test_workers_read_the_same(make):
    stream = make(workers=1).iterate(4)
    assert np.array_equal(next(stream)["image_tokens"], make()[4]["image_tokens"])
    stream.close()


def test_through_a_config(folder):
    config = DataConfig(source=SourceKind.ENCODED, path=str(folder), image_size=SIZE)
    assert splits_of(config) == [TRAIN, EVAL]
    assert [len(open_source(config, split)) for split in splits_of(config)] == [20, 20]
    assert open_source(config, TRAIN).captions(0) == ("image 0", "déjà vu")


def test_more_shards_than_files_may_be_open_are_refused(folder, monkeypatch):
    """One that cannot be opened would be counted as damaged; the limit itself is the script's to raise."""
    monkeypatch.setattr("resource.getrlimit", lambda which: (200, 200))
    monkeypatch.setattr("resource.setrlimit", lambda *_: pytest.fail("the process is changed"))
    with pytest.raises(UserError, match=r"shards, which stay open, and this process may open 200 files: .*ulimit -n"):
        Encoded(str(folder), TRAIN)
