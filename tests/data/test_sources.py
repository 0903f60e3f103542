"""From a config to a source: kinds, splits, what is held out."""

import dataclasses
import os
import pickle

import numpy as np
import pytest

from dalle_jax.data.batches import Batches
from dalle_jax.data.config import (
    Augment,
    DataConfig,
    HeldOutBy,
    MixturePart,
    ShapesConfig,
    SourceKind,
    TarKey,
    TokenizerConfig,
)
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import Rest, hash_key
from dalle_jax.data.sources import hold_out, open_source, open_splits, whole_of
from dalle_jax.errors import UserError


@pytest.fixture
def pictures(tmp_path, png):
    for split, count in (("train", 40), ("val", 3)):
        (tmp_path / split).mkdir()
        for i in range(count):
            (tmp_path / split / f"{split}{i}.png").write_bytes(png(i))
    return tmp_path


def keys(source):
    return [source.key(i) for i in range(len(source))]


def folder_config(path, **values):
    return DataConfig(source=SourceKind.FOLDER, path=str(path), **values)


def test_the_held_out_part_is_decided_by_keys_alone(list_source):
    source = list_source(2000)
    train, held_out = hold_out(source, 0.1, "train"), hold_out(source, 0.1, "eval")
    assert sorted(keys(train) + keys(held_out)) == sorted(keys(source))
    assert 150 < len(held_out) < 250
    fewer = list_source(source.records[:1000])
    assert set(keys(hold_out(fewer, 0.1, "eval"))) == set(keys(held_out)) & set(keys(fewer))
    assert held_out[3] == source[int(held_out.key(3).split("-")[1])]
    assert held_out.captions(3) == held_out[3].captions
    assert held_out.has_labels


def test_hash_of_a_key_never_changes():
    # Another value would move samples of trained models from one side of the split to the other.
    assert hash_key("000000001") == 14147795688876801660


def test_few_samples(list_source):
    source = list_source(3)
    assert len(hold_out(source, 0.0001, "eval")) == 1 and len(hold_out(source, 0.0001, "train")) == 2
    with pytest.raises(UserError, match=r"1 sample\(s\), too few to hold out"):
        hold_out(list_source(1), 0.5, "train")


def test_splits_of_a_path(pictures):
    config = folder_config(pictures / "{split}", eval_split="val")
    assert len(open_source(config)) == 40 and len(open_source(config, "eval")) == 3
    assert keys(open_source(config, "val")) == keys(open_source(config, "eval"))
    config = folder_config(pictures / "train", eval_fraction=0.25)
    sizes = len(open_source(config, "train")), len(open_source(config, "eval"))
    assert sum(sizes) == 40 and 3 <= sizes[1] <= 18
    assert len(open_source(folder_config(pictures / "train", eval_fraction=0.0))) == 40


def test_split_errors(pictures):
    with pytest.raises(UserError, match="nothing of folder .* is held out"):
        open_source(folder_config(pictures / "train", eval_fraction=0.0), "eval")
    with pytest.raises(UserError, match=r"has no split 'unseen': write \{split\} in the path"):
        open_source(folder_config(pictures / "train"), "unseen")


def test_tars_by_config(write_tar, png):
    path = write_tar("x-0.tar", {f"{i}.png": png(i) for i in range(30)})
    config = DataConfig(source=SourceKind.WEBDATASET, path=os.path.dirname(path) + "/x-*.tar", eval_fraction=0.2)
    both = keys(open_source(config)) + keys(open_source(config, "eval"))
    assert sorted(both) == sorted(f"x-0/{i}" for i in range(30))


@pytest.mark.parametrize("fraction", [0.02, 0.3])
def test_keys_that_come_again_in_every_tar_are_held_out_by_tar_and_key(write_tar, png, fraction):
    image = png()
    for tar in range(200):
        path = write_tar(f"{tar:03}.tar", {f"{i}.png": image for i in range(4)})
    config = DataConfig(source=SourceKind.WEBDATASET, path=os.path.dirname(path), eval_fraction=fraction)
    held_out, train = open_source(config, "eval"), open_source(config)
    assert len(held_out) + len(train) == 800
    assert (
        abs(len(held_out) - 800 * fraction) < 4 * (800 * fraction * (1 - fraction)) ** 0.5
    )  # four standard deviations
    assert len({*keys(held_out), *keys(train)}) == 800
    by_key = dataclasses.replace(config, held_out_by=HeldOutBy.KEY)
    assert {key[-1] for key in keys(open_source(by_key, "eval"))}.isdisjoint(keys(open_source(by_key)))
    fewer = dataclasses.replace(config, path=f"{config.path}/{{000..099}}.tar")
    assert set(keys(open_source(fewer, "eval"))) == {key for key in keys(held_out) if key < "100"}


def test_hashes_of_tar_and_key_never_change(write_tar, png):
    # As of a key alone.
    source = WebDataset([write_tar("00000.tar", {"000000001.png": png()})], held_out_by=HeldOutBy.TAR_AND_KEY)
    assert source.key(0) == "00000/000000001" and source.key_hashes().tolist() == [16024335165944921040]


def test_both_splits_of_one_opening(write_tar, png, pictures, caplog):
    path = write_tar("x.tar", {f"{i}.png": png(i) for i in range(30)} | {"readme.md": b""})
    config = DataConfig(source=SourceKind.WEBDATASET, path=path, eval_fraction=0.2)
    sources = open_splits(config)
    assert {split: keys(source) for split, source in sources.items()} == {
        split: keys(open_source(config, split)) for split in ("train", "eval")
    }
    assert whole_of(sources["train"]) is whole_of(sources["eval"]) and not caplog.records
    mixture = DataConfig(mixture=(
        MixturePart(name="a", source=SourceKind.WEBDATASET, path=path, eval_fraction=0.2),
        MixturePart(name="b", source=SourceKind.FOLDER, path=str(pictures / "train"), eval_fraction=0.0, weight=2.0),
    ))  # fmt: skip
    for split, source in open_splits(mixture).items():
        again = open_source(mixture, split)
        assert (keys(source), source.part_names, source.weights) == (keys(again), again.part_names, again.weights)


def test_what_is_left_out_is_warned_of_once(write_tar, png, caplog):
    path = write_tar("loss.tar", {"a.png": png(), "b.png": png(1), "readme.md": b""})
    config = DataConfig(source=SourceKind.WEBDATASET, path=path, eval_fraction=0.5)
    for split in ("train", "eval", "train"):
        open_source(config, split)
    (record,) = caplog.records
    assert record.getMessage() == f"webdataset {path}: left out: members of other extensions: 1, readme.md in loss.tar"


def test_shapes_by_config(tmp_path):
    config = DataConfig(shapes=ShapesConfig(data_dir=str(tmp_path), num_train=6, num_eval=2))
    assert [len(open_source(config, split)) for split in ("train", "eval", "unseen")] == [6, 2, 2]


@pytest.mark.parametrize("key, value", [("eval_fraction", 2.0), ("image_size", 0), ("workers", -1), ("prefetch", 0)])
def test_config_refuses(key, value):
    with pytest.raises(ValueError, match=key):
        DataConfig(**{key: value})


def test_a_key_of_tars_for_other_data_is_refused():
    with pytest.raises(ValueError, match="key='stem' is for tars, and source is 'folder'"):
        folder_config("x", key=TarKey.STEM)


def test_tokenizer_config_refuses():
    with pytest.raises(ValueError, match="bpe_dropout"):
        TokenizerConfig(bpe_dropout=1.0)
    with pytest.raises(ValueError, match="text_length"):
        TokenizerConfig(text_length=1)


def test_held_out_pictures_are_not_augmented():
    assert [augment.held_out for augment in (Augment.DVAE, Augment.DALLE, Augment.NONE)] == [Augment.NONE] * 3
    assert Augment.CLIP.held_out is Augment.CLIP_INFERENCE


@pytest.mark.parametrize("left_out", [[], [0], [49], [0, 1, 2], [3, 4, 10, 48], list(range(49))])
def test_the_rest_is_every_other_record_in_order(list_source, left_out):
    source = list_source(50)
    rest = Rest(source, np.array(left_out, np.uint32), "rest")
    assert [rest.key(i) for i in range(len(rest))] == [source.key(i) for i in range(50) if i not in left_out]
    assert rest[0] == source[int(rest.key(0).rpartition("-")[2])] and len(pickle.dumps(rest._indices)) < 1_000


def test_a_lookup_in_the_rest_converts_no_table(list_source, monkeypatch):
    """A number of another type would: a tenth of a second for each of a hundred million records."""
    types, search = [], np.searchsorted
    monkeypatch.setattr(np, "searchsorted", lambda a, v, **k: types.append((a.dtype, v.dtype)) or search(a, v, **k))
    Rest(list_source(50), np.array([3, 4], np.uint32), "rest").key(7)
    assert types == [(np.uint32, np.uint32)]


def test_hold_out_extremes(list_source):
    assert len(hold_out(list_source(50), 1.0, "eval")) == 50
    assert np.all(hold_out(list_source(9), 0.3, "eval").key_hashes() < 0.3 * 2**64)


def test_tars_of_one_name_in_many_folders_are_told_apart(tmp_path, write_tar, png):
    """The same keys under the same name would all be held out together, or not at all."""
    for i in range(12):
        (tmp_path / f"part{i}").mkdir()
        write_tar(f"part{i}/0.tar", {f"{j:03}.png": png(j, 1, 1) for j in range(20)})
    config = DataConfig(source="webdataset", path=str(tmp_path / "*" / "0.tar"), eval_fraction=0.1)
    sources = open_splits(config)
    assert 10 <= len(sources["eval"]) <= 40  # 24 and four standard deviations
    assert len({sources["eval"].key(i) for i in range(len(sources["eval"]))}) == len(sources["eval"])
    assert sources["train"].key(0).startswith("part0/0/")


def test_bad_samples_without_end_show_one(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    source = open_source(DataConfig(source="folder", path=str(tmp_path), eval_fraction=0.0))
    batches = Batches(source, batch_size=2, image_size=8, augment=Augment.NONE, seed=0)
    with pytest.raises(UserError, match=r"100 samples .* cannot be used \(not_a_picture 100, such as [0-4]\.png"):
        batches[0]
