"""Batches: a function of (seed, n) alone, finite passes, bad samples replaced, counted and in the end refused."""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dalle_jax.data import prefetch
from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, TextConfig
from dalle_jax.data.mixture import Mixture
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import BadReason, BadSample, Record
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError

SIZE = 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"image number {i} the {i}th of them" for i in range(60)], 45)


@pytest.fixture(scope="module")
def make(list_source, tokenizer):
    source = list_source(50)

    def batches(records=source, **options):
        source = records if hasattr(records, "key") else list_source(records)
        settings = dict(batch_size=8, image_size=SIZE, augment=Augment.DVAE, seed=3, tokenizer=tokenizer)
        settings["text"] = TextConfig(24, dropout=0.2) if options.get("tokenizer", tokenizer) else None
        return Batches(source, **(settings | options))

    return batches


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(np.asarray(left[name]), np.asarray(right[name])), name


def test_what_is_in_a_batch(make):
    batch = make()[0]
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "image": ((8, SIZE, SIZE, 3), np.uint8),
        "text": ((8, 24), np.int32),
        "label": ((8,), np.int32),
    }
    assert set(make(tokenizer=None)[0]) == {"image", "label"}


def test_pictures_stay_with_their_captions_and_labels(make, list_source, tokenizer):
    batch = make(augment=Augment.NONE)[3]
    source = list_source(50)
    for image, text, label in zip(batch["image"], batch["text"], batch["label"], strict=True):
        assert tokenizer.decode(text) in source[label].captions
        assert np.array_equal(image, make([source[label]], batch_size=1, augment=Augment.NONE)[0]["image"][0])


def test_batch_n_depends_on_seed_and_n_alone(make):
    batches = make()
    later = batches[5]
    assert_equal(make()[5], later)
    assert not np.array_equal(make(seed=4)[5]["image"], later["image"])
    assert not np.array_equal(batches[6]["image"], later["image"])


def test_every_seed_up_to_32_bits_is_another_order(make):
    orders = {seed: make(seed=seed)[0]["label"].tolist() for seed in (0, 2**31 - 1, 2**31, 2**32 - 1)}
    assert len({tuple(labels) for labels in orders.values()}) == 4
    assert make(seed=2**32 - 1)[3]["image"].tobytes() == make(seed=2**32 - 1)[3]["image"].tobytes()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_bring_their_rows_of_the_same_batch(make, count):
    for n in (0, 6, 100):  # 6 straddles two epochs
        parts = [make(rows=np.split(np.arange(8), count)[i])[n] for i in range(count)]
        whole = make()[n]
        assert_equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


def test_an_epoch_holds_every_sample_once_and_the_next_is_in_another_order(make):
    batches = make(batch_size=10)
    epochs = [np.concatenate([batches[n]["label"] for n in range(5 * e, 5 * e + 5)]) for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0].tolist() != epochs[1].tolist()


def test_augmentation_and_caption_change_from_epoch_to_epoch(make):
    batches = make(batch_size=1, records=[Record(np.arange(300, dtype=np.uint8).reshape(10, 10, 3), ("a", "b"), "k")])
    drawn = [batches[n] for n in range(20)]
    assert len({batch["image"].tobytes() for batch in drawn}) > 5
    assert len({batch["text"].tobytes() for batch in drawn}) == 2


def test_resuming_is_starting_there(make):
    batches = make()
    for start in (0, 7):
        stream = batches.iterate(start)
        for n in range(start, start + 4):
            batch = next(stream)
            assert all(isinstance(array, jax.Array) for array in batch.values())
            assert_equal(batch, make()[n])
        stream.close()


@pytest.fixture
def tar_source(write_tar, png):
    # Worker processes import what they unpickle, which a source of this test would not survive.
    members = {f"{i:02}.png": png(i) for i in range(20)} | {f"{i:02}.txt": f"image {i}".encode() for i in range(20)}
    members |= {"20.png": png(20)[:100], "20.txt": b"image number"}
    return WebDataset([write_tar("x.tar", members)])


def test_worker_processes_make_the_same_batches(make, tar_source):
    batches = make(tar_source, workers=2, max_bad_fraction=1.0)
    stream = batches.iterate(2)
    for n in range(2, 8):
        assert_equal(next(stream), make(tar_source)[n])
    stream.close()
    assert batches.bad_counts["truncated"] > 0


def test_a_signal_to_the_whole_job_leaves_the_workers_reading(make, tar_source):
    before = set(multiprocessing.active_children())
    stream = make(tar_source, workers=1, max_bad_fraction=1.0).iterate()
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - before
    for name in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, name)
    for n in range(1, 12):
        assert_equal(next(stream), make(tar_source)[n])
    stream.close()
    worker.join(10)
    assert not worker.is_alive()


def test_what_workers_find_wrong_reaches_the_person(make, tar_source):
    stream = make(tar_source, workers=1, max_bad_fraction=0.0).iterate()
    with pytest.raises(UserError, match="samples read from webdataset .* are bad"):
        for _ in range(20):
            next(stream)


def test_nothing_readable_is_an_error_from_a_worker_too(make, write_tar, png):
    source = WebDataset([write_tar("x.tar", {"a.png": png()[:60], "a.txt": b"image"})])
    with pytest.raises(UserError, match="100 samples of webdataset .* in a row cannot be used"):
        next(make(source, workers=1, max_bad_fraction=1.0).iterate())


def test_global_arrays_on_a_mesh(make):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    stream = make().iterate(1, sharding=sharding)
    batch = next(stream)
    stream.close()
    assert batch["text"].sharding.is_equivalent_to(sharding, 2) and batch["image"].shape == (8, SIZE, SIZE, 3)
    assert_equal(batch, make()[1])
    assert prefetch.process_rows(sharding, 8).tolist() == list(range(8))
    with pytest.raises(UserError, match="a batch of 12 does not divide over the mesh"):
        prefetch.process_rows(sharding, 12)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a process."""

    process_index: int
    number: int


def spread(chips, parts=8):
    """A batch of 16 over chips in an order, a part each, or one for every two of them."""
    size = 16 // parts
    places = [i * parts // 8 for i in range(8)]
    return {chip: (slice(size * i, size * (i + 1)),) for chip, i in zip(chips, places, strict=True)}


def test_which_rows_a_process_brings():
    chips = [Chip(i // 4, i) for i in range(8)]
    assert prefetch.rows_of(spread(chips), 16, 1).tolist() == list(range(8, 16))
    dealt = spread([chips[i] for i in (0, 1, 4, 5, 2, 3, 6, 7)])  # squares of four chips, cut into rows
    assert prefetch.rows_of(dealt, 16, 0).tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert prefetch.rows_of(dealt, 16, 1).tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    shared = spread([chips[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)], parts=4)  # a model axis across the processes
    assert [prefetch.rows_of(shared, 16, i).tolist() for i in (0, 1)] == [list(range(16))] * 2


def test_rows_that_do_not_lie_together(make):
    rows = [1, 2, 6]
    for n in (0, 6):
        whole, part = make()[n], make(rows=rows)[n]
        assert_equal(part, {name: array[rows] for name, array in whole.items()})
    passes = zip(make().epoch(), make(rows=rows).epoch(), strict=True)
    assert all(np.array_equal(part["text"], np.asarray(whole["text"])[rows]) for whole, part in passes)
    stream = make(rows=rows, workers=1).iterate(6)
    assert np.array_equal(next(stream)["label"], make()[6]["label"][rows])
    stream.close()


def test_a_pass_is_in_order_and_repeats_itself(make):
    batches = make(augment=Augment.NONE)
    passes = [list(batches.epoch()) for _ in range(2)]
    filled_up = [48, 49, *range(6)]
    assert [batch["label"].tolist() for batch in passes[0]] == [*np.arange(48).reshape(6, 8).tolist(), filled_up]
    for first, second in zip(*passes, strict=True):
        assert_equal(first, second)
    few = np.concatenate([batch["label"] for batch in batches.epoch(2)])
    assert len(few) == 16 and few[0] == 0 and few[-1] >= 46 and (np.diff(few) > 0).all()
    assert all(batch["mask"].all() for batch in batches.epoch(2))
    assert len(list(batches.epoch(100))) == 7
    (small,) = make(3, augment=Augment.NONE).epoch()
    assert small["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert small["mask"].tolist() == [True] * 3 + [False] * 5
    halves = [list(make(augment=Augment.NONE, rows=np.split(np.arange(8), 2)[i]).epoch()) for i in range(2)]
    for part, (left, right) in enumerate(zip(*halves, strict=True)):
        for name, whole in passes[0][part].items():
            np.testing.assert_array_equal(np.concatenate([left[name], right[name]]), whole)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 50, 64])
def test_every_sample_of_a_pass_counts_once(make, batch_size):
    batches = list(make(augment=Augment.NONE, batch_size=batch_size).epoch())
    assert {batch["mask"].shape for batch in batches} == {(batch_size,)}
    counted = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    assert sorted(counted.tolist()) == list(range(50))


def test_what_stands_in_for_a_bad_sample_does_not_count(make, png):
    records = bad_records(png)
    (batch,) = make(records, batch_size=17, max_bad_fraction=1.0, max_pixels=5000, augment=Augment.NONE).epoch()
    counted = [image.tobytes() for image in np.asarray(batch["image"])[np.asarray(batch["mask"])]]
    assert len(counted) == len(set(counted)) == 8


def test_a_pass_over_a_mixture_counts_no_sample_twice(list_source):
    """The small part has the larger weight: all of it counts once, and the other one its share of the batches."""
    records = list_source(66).records
    parts = [list_source(records[:6]), list_source(records[6:])]
    options = dict(batch_size=16, image_size=SIZE, augment=Augment.NONE, seed=0)
    batches = list(Batches(Mixture(parts, ("a", "b"), (3.0, 1.0)), **options).epoch())
    images = np.concatenate([np.asarray(batch["image"])[np.asarray(batch["mask"])] for batch in batches])
    assert len(images) == len({image.tobytes() for image in images}) == 6 + 5 * 16 // 4


def bad_records(png):
    good = [Record(png(i), (f"image {i}",), f"good-{i}") for i in range(8)]
    return [
        *good,
        BadSample(BadReason.MISSING),
        Record(png(9)[:60], ("picture",), "truncated"),
        Record(b"<html>", ("picture",), "not-a-picture"),
        Record(png(9, 100, 100), ("picture",), "too-large"),
        Record(png(9), (), "no-caption"),
        Record(png(9), (), "not-utf-8", captions_fault=BadReason.CAPTION_ENCODING),
        Record(png(9), (), "not-json", captions_fault=BadReason.CAPTION_JSON),
        BadSample(BadReason.NO_LABEL),
        Record(POINTER, ("picture",), "pointer"),
    ]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_bad_samples_are_replaced_and_counted_by_reason(make, png):
    records = bad_records(png)
    options = dict(batch_size=16, max_bad_fraction=1.0, max_pixels=5000, augment=Augment.NONE)
    batches = make(records, **options)
    batch = batches[0]
    good = {make([record], batch_size=1, augment=Augment.NONE)[0]["image"].tobytes() for record in records[:8]}
    assert len(batch["image"]) == 16 and {image.tobytes() for image in batch["image"]} <= good
    assert all(count >= 1 for count in batches.bad_counts.values())
    assert sorted(batches.bad_counts) == sorted(reason.value for reason in BadReason)
    assert_equal(make(records, **options)[0], batch)
    halves = [make(records, **options, rows=np.split(np.arange(16), 2)[i])[0] for i in range(2)]
    assert_equal({name: np.concatenate([half[name] for half in halves]) for name in batch}, batch)


def test_captions_do_not_matter_where_nobody_reads_them(make, png):
    batches = make(bad_records(png), batch_size=32, max_bad_fraction=1.0, max_pixels=5000, tokenizer=None)
    batches[0]
    counts = Counter(batches.bad_counts)
    assert counts["no_caption"] == counts["caption_encoding"] == 0 and counts["truncated"] > 0


def test_a_run_stops_when_too_many_samples_are_bad(make, png):
    records = [Record(png(i), ("picture",), str(i)) for i in range(9)] + [Record(b"<html>", ("picture",), "x")]
    batches = make(records, batch_size=10, max_bad_fraction=0.05)
    with pytest.raises(
        UserError,
        match=r"51 of \d+ samples read from a list are bad \(not_a_picture 51, such as key-9\), more "
        r"than config.data.max_bad_fraction=0.05 allows",
    ):
        for n in range(1000):
            batches[n]
    tolerant = make(records, batch_size=10, max_bad_fraction=0.15)
    for n in range(101):
        tolerant[n]
    assert tolerant.bad_counts["not_a_picture"] >= 101


def test_each_reason_has_an_example(make, png):
    good = [Record(png(i), (f"image {i}",), str(i)) for i in range(9)]
    batches = make([*good, Record(b"<html>", ("picture",), "x"), Record(png(), (), "y")], max_bad_fraction=0.05)
    both = r"not_a_picture \d+, such as key-9; no_caption \d+, such as key-10"
    with pytest.raises(UserError, match=rf"samples read from a list are bad \({both}\), more than"):
        for n in range(1000):
            batches[n]
    with pytest.raises(UserError, match=r"100 samples of a list in a row .*\d+, such as key-\d; no_caption \d+, such"):
        make([Record(b"<html>", ("a",), "x"), Record(png(), (), "y")] * 4, max_bad_fraction=1.0)[0]
    with pytest.raises(UserError, match=r"lfs_pointer 100, such as key-\d\).*git lfs pull"):
        make([Record(POINTER, ("a",), "x")] * 4, max_bad_fraction=1.0)[0]


@pytest.mark.parametrize("label", [None, 2**31, -(2**40)])
def test_a_label_that_is_none_is_a_bad_sample(make, list_source, png, label):
    """Not class -1 in silence, nor an `OverflowError`."""
    source = list_source(
        [Record(png(i), ("a",), str(i), label=i) for i in range(9)] + [Record(png(), ("a",), "9", label)]
    )
    source.has_labels = True
    batches = make(source, batch_size=20, max_bad_fraction=1.0)
    assert -1 not in batches[0]["label"].tolist() and batches.bad_counts["no_label"] >= 1


def test_one_bad_sample_early_stops_nobody(make, png):
    records = [Record(png(i), ("picture",), str(i)) for i in range(9)] + [Record(b"<html>", ("picture",), "x")]
    make(records, batch_size=10)[0]  # a fifth of the first ten, but far from one in a hundred of a thousand
    with pytest.raises(UserError, match="2 of 12 samples"):
        make(records, batch_size=10, max_bad_fraction=0.0)[0]


def test_nothing_readable_is_an_error_at_once(make, png):
    with pytest.raises(
        UserError, match=r"100 samples of a list in a row cannot be used \(truncated 100, such as key-\d+\)"
    ):
        make([Record(png(0)[:60], ("picture",), "x")] * 5, max_bad_fraction=1.0)[0]


def test_counts_are_of_the_batches_handed_out(make, png):
    records = [Record(png(i), ("picture",), str(i)) for i in range(9)] + [Record(b"<html>", ("picture",), "x")]
    batches = make(records, batch_size=10, max_bad_fraction=1.0, prefetch=4)
    stream = batches.iterate()
    for n in range(1, 4):
        next(stream)
        reference = make(records, batch_size=10, max_bad_fraction=1.0)
        for m in range(n):
            reference[m]
        assert batches.bad_counts == reference.bad_counts
    stream.close()


def test_captions_that_do_not_fit_are_counted(make, tokenizer):
    batches = make(text=TextConfig(4))
    assert tokenizer.num_tokens("image number 1") > 4
    batches[0]
    assert batches.captions_cut == 8
    roomy = make()
    roomy[0]
    assert roomy.captions_cut == 0


def test_wrong_settings(make, list_source, png):
    with pytest.raises(UserError, match="a list is empty"):
        make([])
    without = [Record(png(i), (), str(i)) for i in range(4)]
    with pytest.raises(UserError, match=r"a list has no captions \(none at 4 samples looked at\)"):
        make(without)
    make(without, tokenizer=None)[0]
    with pytest.raises(ValueError, match="go together"):
        make(text=None)


def test_a_fault_of_the_reader_keeps_its_type(make):
    class Broken(type(make().source)):
        def __getitem__(self, index):
            if index == 17:
                raise ZeroDivisionError
            return super().__getitem__(index)

    stream = make(Broken(make().source.records)).iterate()
    with pytest.raises(ZeroDivisionError):
        for _ in range(10):
            next(stream)


def test_closing_the_stream_ends_its_thread(make):
    before = set(threading.enumerate())
    stream = make().iterate()
    next(stream)
    stream.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "prefetch"]


def test_computing_ahead_stays_in_order_and_within_its_size():
    started: list[int] = []

    def square(x):
        started.append(x)
        return x * x

    stream = prefetch.compute_ahead(range(100), square, size=3)
    assert [next(stream) for _ in range(5)] == [0, 1, 4, 9, 16]
    threading.Event().wait(0.2)
    assert len(started) <= 5 + 3 + 1
    assert list(stream) == [x * x for x in range(5, 100)]


def test_real_data(make, cifar_glob, emoji_glob):
    from dalle_jax.data import paths

    for pattern, size in ((cifar_glob, 32), (emoji_glob, 64), (cifar_glob, 48)):
        source = WebDataset(paths.expand(pattern, ".tar"))
        batches = make(source, image_size=size, batch_size=64, augment=Augment.DALLE)
        batch = batches[0]
        assert batch["image"].shape == (64, size, size, 3)
        assert ("label" in batch) == (pattern == cifar_glob)
        assert not any(batches.bad_counts.values())
