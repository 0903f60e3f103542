"""Mixtures: shares as written, every part in epochs of its own, batch n a function of (seed, n) alone."""

import itertools
from collections import Counter

import numpy as np
import pytest

from dalle_jax.config import from_config_dict, to_config_dict
from dalle_jax.data import order
from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, DataConfig, MixturePart, SourceKind, TextConfig
from dalle_jax.data.mixture import Mixture
from dalle_jax.data.records import BadReason, BadSample, Encoding, Record
from dalle_jax.data.sources import EVAL, TRAIN, open_source, splits_of
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError

SIZES, WEIGHTS = (7, 40, 1000), (0.5, 0.2, 0.3)
PICTURE = np.zeros((8, 8, 3), np.uint8)


def pictures(name, count, **more):
    return [Record(PICTURE, (f"image {i} of {name}",), f"{name}-{i}", label=i, **more) for i in range(count)]


@pytest.fixture(scope="module")
def mixture(list_source):
    parts = [list_source(pictures(name, size)) for name, size in zip("abc", SIZES, strict=True)]
    for part in parts:
        part.class_names = ("one class for all",)  # or labels would be left out
    return Mixture(parts, "abc", WEIGHTS)


def test_indices_are_of_the_parts_one_after_the_other(mixture):
    assert len(mixture) == sum(SIZES)
    for index, part, inner in ((0, "a", 0), (6, "a", 6), (7, "b", 0), (46, "b", 39), (47, "c", 0), (1046, "c", 999)):
        assert mixture[index].key == f"{part}-{inner}" and mixture.key(index) == f"{part}/key-{inner}"
        assert mixture.captions(index) == (f"image {inner} of {part}",)
        assert index in mixture.alternatives(index) and len(mixture.alternatives(index)) == SIZES["abc".index(part)]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), WEIGHTS, (0.7, 0.3), (1.0, 1e-3), (3.0, 0.1, 2.0, 5.0)])
def test_shares_are_exact(weights):
    turns = order.Turns(weights)
    counts = np.zeros(len(weights))
    for k in range(3000):
        part, inner = turns[k]
        assert inner == counts[part]
        counts[part] += 1
        assert np.all(np.abs(counts - np.array(weights) / sum(weights) * (k + 1)) < 2), k
    # As far as a run may come, and to the last element exactly.
    far = 1 << 40
    whole = round(sum(weights) * 1000)
    taken = Counter(turns[k][0] for k in range(far * whole, (far + 1) * whole))
    assert [taken[part] for part in range(len(weights))] == [round(weight * 1000) for weight in weights]


def test_each_part_is_visited_once_an_epoch_in_a_new_order(mixture):
    drawn = order.endless(mixture, seed=5)
    of_a = list(itertools.islice((k for k in map(int, (drawn[i] for i in range(10_000))) if k < 7), 21))
    epochs = [of_a[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_parts_of_one_length_have_orders_of_their_own(list_source):
    drawn = order.endless(Mixture([list_source(pictures(name, 50)) for name in "ab"], "ab", (1.0, 1.0)), seed=5)
    indices = [int(drawn[i]) for i in range(100)]
    assert [k for k in indices if k < 50] != [k - 50 for k in indices if k >= 50]


@pytest.fixture(scope="module")
def make(mixture):
    tokenizer = train_tokenizer([f"image {i} of {name}" for i in range(60) for name in "abc"], 40)

    def batches(source=mixture, **options):
        settings = dict(batch_size=20, image_size=8, augment=Augment.NONE, seed=3, tokenizer=tokenizer)
        return Batches(source, **(settings | {"text": TextConfig(24, dropout=0.2)} | options))

    return batches


def test_batch_n_is_a_function_of_seed_and_n_alone(make):
    whole = {n: make()[n] for n in (5, 10**9)}
    for n, batch in whole.items():
        assert np.array_equal(make()[n]["text"], batch["text"])
        for count in (2, 4):
            parts = [make(rows=np.split(np.arange(20), count)[i])[n] for i in range(count)]
            for name in batch:
                assert np.array_equal(np.concatenate([part[name] for part in parts]), batch[name])
    assert not np.array_equal(make(seed=4)[5]["text"], whole[5]["text"])
    stream = make().iterate(5)
    assert np.array_equal(next(stream)["text"], whole[5]["text"])
    stream.close()


def test_samples_are_counted_by_part(make):
    batches = make()
    assert batches.part_counts == {"a": 0, "b": 0, "c": 0}
    for n in range(5):
        batches[n]
    assert batches.part_counts == {"a": 50, "b": 20, "c": 30}
    assert make(Mixture([make().source.parts[1]], ["b"], [1.0])).part_counts == {"b": 0}
    assert make(make().source.parts[1]).part_counts == {}


def test_a_bad_sample_is_replaced_within_its_part(make, list_source):
    bad = [BadSample(BadReason.TRUNCATED), *pictures("a", 3)]
    source = Mixture([list_source(bad), list_source(pictures("b", 500))], "ab", (1.0, 1.0))
    batches = make(source, max_bad_fraction=1.0)
    for n in range(6):
        batches[n]
    assert batches.bad_counts["truncated"] >= 10
    assert batches.part_counts == {"a": 60, "b": 60}


def test_a_pass_has_the_weights_too(make):
    passes = [np.concatenate([batch["label"] for batch in make().epoch(2)]) for _ in range(2)]
    assert np.array_equal(*passes) and len(passes[0]) == 40
    part = [order.Turns(WEIGHTS)[k][0] for k in range(40)]
    of_c = passes[0][[p == 2 for p in part]]
    assert len(of_c) == 12 and of_c[0] == 0 and of_c[-1] > 900 and np.all(np.diff(of_c) > 0)
    assert passes[0][[p == 0 for p in part]].tolist() == [k % 7 for k in range(20)]


def test_a_part_without_captions_is_named(make, list_source):
    silent = list_source([Record(PICTURE, (), "x")] * 3)
    silent.name = "the silent ones"
    with pytest.raises(UserError, match="the silent ones has no captions"):
        make(Mixture([list_source(pictures("a", 5)), silent], "ab", (1.0, 1.0)))


def test_pictures_and_tokens_in_one_batch(make, list_source):
    encoding = Encoding("codec", 16, 2, 8)
    encoded = list_source([Record(b"", ("an image",), "k", tokens=np.array([[1, 2, 3, 4]], np.int32))] * 5)
    encoded.encoding, encoded.has_images = encoding, False
    plain = list_source([Record(PICTURE + 9, ("an image",), "k")] * 5)
    batch = make(Mixture([plain, encoded], ["p", "e"], (1.0, 3.0)))[0]
    has_tokens = batch["image_tokens"][:, 0] >= 0
    assert has_tokens.sum() == 15
    assert np.all(batch["image_tokens"] == np.where(has_tokens[:, None], [1, 2, 3, 4], -1))
    assert np.all(batch["image"][has_tokens] == 0) and np.all(batch["image"][~has_tokens] == 9)
    only = make(encoded)[0]
    assert "image" not in only and only["image_tokens"].shape == (20, 4)
    other = list_source(encoded.records)
    other.encoding = Encoding("another", 16, 2, 8)
    with pytest.raises(UserError, match="parts 'e' and 'f' of the mixture were encoded by different codecs"):
        Mixture([encoded, plain, other], "epf", (1.0, 1.0, 1.0))


def test_an_empty_part_is_named(list_source):
    with pytest.raises(UserError, match="part 'b' of the mixture, a list, is empty"):
        Mixture([list_source(3), list_source([])], "ab", (1.0, 1.0))


@pytest.fixture
def folders(tmp_path, png):
    for name, count in (("a", 30), ("b", 60)):
        for i in range(count):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i:02}.png").write_bytes(png(i))
            (tmp_path / name / f"{i:02}.txt").write_text(f"image {i} of {name}")
    return tmp_path


def test_from_a_config(folders):
    places = {name: dict(source=SourceKind.FOLDER, path=str(folders / name)) for name in "ab"}
    parts = (
        MixturePart(name="a", weight=1.0, eval_fraction=0.0, **places["a"]),
        MixturePart(name="b", weight=2.0, eval_fraction=0.1, **places["b"]),
    )
    config = from_config_dict(DataConfig, to_config_dict(DataConfig(mixture=parts, image_size=8)))
    assert config.mixture == parts
    assert splits_of(config) == [TRAIN, EVAL]
    train, held_out = open_source(config, TRAIN), open_source(config, EVAL)
    assert train.part_names == ("a", "b") and train.weights == (1.0, 2.0)
    assert held_out.part_names == ("b",) and len(train) + len(held_out) == 90
    none = DataConfig(mixture=parts[:1])
    assert splits_of(none) == [TRAIN]
    with pytest.raises(UserError, match="no part of the mixture holds anything out"):
        open_source(none, EVAL)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ([{"name": "a", "weight": 0.0}], "weight of 'a' must be above 0"),
        ([{"name": "a", "weight": float("nan")}], "weight' must be a finite number, not nan"),
        ([{"weight": 1.0}], "each part of a mixture needs a name"),
        ([{"name": "a"}, {"name": "a"}], "two parts of the mixture are called 'a'"),
        ([{"name": "a", "wieght": 2.0}], r"'config.mixture\[0\].wieght', did you mean 'weight'"),
        ([{"name": "a", "workers": 2}], "unknown config key"),
        ([{"name": "a", "eval_fraction": 2.0}], "eval_fraction must be between 0 and 1"),
    ],
)
def test_refusals(mixture, message):
    with pytest.raises(UserError, match=message):
        from_config_dict(DataConfig, {"mixture": mixture})


def test_data_in_two_places():
    with pytest.raises(UserError, match="a mixture of a and path='b': name the data in one place"):
        from_config_dict(DataConfig, {"mixture": [{"name": "a"}], "path": "b"})
