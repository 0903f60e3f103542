"""Values beside the weights: whatever they are, they are not run, and the weights beside them are read."""

import datetime
import decimal
import enum
import fractions
import functools
import io
import os
import pathlib
import pickle
import uuid
import zipfile

import numpy as np
import pytest

from dalle_jax.errors import UserError
from dalle_jax.weights.mapping import Names, check_tensors
from dalle_jax.weights.pickles import read_pickle
from dalle_jax.weights.reading import read_tensors
from tests.weights import pickled
from tests.weights.pickled import refused

FLOATS = np.arange(6, dtype=np.float32)
NAMES = Names()
NAMES.array("params/w", "w", (2, 3))


class Color(enum.Enum):
    RED = 1


class Runs:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def beside(path, value):
    """A checkpoint whose other values are an expression."""
    weights = {"w": pickled.tensor(0, 6, (2, 3))}
    return pickled.archive(path, {"other": value, "state_dict": weights}, {0: FLOATS.tobytes()})


def reads(path):
    tensors = read_tensors(path)
    check_tensors(NAMES, tensors, path.name)
    np.testing.assert_array_equal(tensors["w"].read(), FLOATS.reshape(2, 3))


HARMLESS = {
    "date": datetime.date(2024, 1, 1),
    "zone": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "enum": Color.RED,
    "decimal": decimal.Decimal("0.1"),
    "fraction": fractions.Fraction(1, 3),
    "path": pathlib.PurePosixPath("/a/b"),
    "uuid": uuid.UUID(int=3),
    "complex": 1j,
    "bytearray": bytearray(b"ab"),
    "slice": slice(1, 2),
    "range": range(3),
    "partial": functools.partial(max, 1),
    "generator": np.random.default_rng(0),
    "random": np.random.RandomState(0),
    "scalar": np.float64(0.5),
    "keys": {((1, 2), (3, frozenset({4}))): 1, frozenset({(5, 6)}): 2},
}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_values(tmp_path, kind, protocol):
    body = pickle.dumps(HARMLESS[kind], protocol)
    start = body.index(b"\x95") + 9 if protocol >= 4 else 2  # behind protocol and frame
    reads(beside(tmp_path / "a.pt", body[start:-1]))


@pytest.mark.parametrize(
    "name, args",
    [
        ("pathlib._local.PosixPath", ("a", "b")),  # Python 3.13's
        ("__builtin__.complex", (1, 2)),
        ("__builtin__.object", ()),
        ("torch.serialization._get_layout", ("torch.strided",)),
        ("torch._utils._rebuild_qtensor", ()),
        ("omegaconf.base.Metadata", ()),
        ("package.of_a_person.Config", ({},)),
        ("posix.system", ("touch proof",)),
    ],
)
def test_calls_that_nobody_needs_are_not_made(tmp_path, name, args):
    reads(beside(tmp_path / "a.pt", pickled.call(name, *args)))


def test_a_command_beside_the_weights_is_not_run(tmp_path):
    proof = tmp_path / "proof"
    evil = pickle.dumps(Runs(os.system, (f"touch {proof}",)), 2)[2:-1]
    reads(beside(tmp_path / "a.pt", evil))
    assert not proof.exists()


MADE = pickled.call("some.function", 1)
USES = {
    "called": MADE + pickled.value((1,)) + b"R",
    "class": MADE + pickled.value((1,)) + b"\x81",
    "in itself": b"]q\x01(" + MADE + b"h\x01e",
    "state of itself": pickled.call("some.function") + b"q\x01h\x01b",
    "entries": MADE + b"(" + pickled.value(1) + b"e",
    "items": MADE + b"(" + pickled.value("a") + pickled.value(1) + b"u",
    "key": b"}" + MADE + pickled.value(1) + b"s",
    "key in a tuple": b"}" + MADE + b"\x85" + pickled.value(1) + b"s",
    "in a set": pickled.call("builtins.set", [MADE]),
    "list": pickled.call("builtins.list", MADE),
    "tuple": pickled.call("builtins.tuple", MADE),
    "dict": pickled.call("collections.OrderedDict", MADE),
    "of a default": pickled.call("collections.defaultdict", MADE),
    "argument": pickled.call("other.function", MADE),
    "sizes": pickled.call("torch.Size", MADE),
    "storage": pickled.call("torch._utils._rebuild_tensor_v2", MADE, 0, (6,), (1,), False, {}),
    "parameter": pickled.call("torch._utils._rebuild_parameter", MADE, True, {}),
    "flag": pickled.call("torch._utils._rebuild_tensor_v2", pickled.storage(0, 6), 0, (6,), (1,), MADE, MADE),
}


@pytest.mark.parametrize("use", USES)
def test_a_stand_in_may_be_used_and_stays_one(tmp_path, use):
    reads(beside(tmp_path / "a.pt", USES[use]))


@pytest.mark.parametrize("use", ["storage", "parameter", "list"])
def test_a_tensor_that_depends_on_a_stand_in_is_refused_where_it_is_needed(tmp_path, use):
    tensors = {"w": pickled.tensor(0, 6, (2, 3)), "v": USES[use]}
    path = pickled.archive(tmp_path / "a.pt", tensors, {0: FLOATS.tobytes()})
    reads(path)
    needs = Names(NAMES)
    needs.array("params/v", "v", (6,))
    with pytest.raises(
        UserError, match="a.pt is refused: it asks to call some.function to make 'v', which no weights need"
    ):
        check_tensors(needs, read_tensors(path), "a.pt")


FLOAT8 = (pickled.storage(1, 24, "UntypedStorage"), 0, (24,), (1,), False, {}, pickled.named("torch.float8_e4m3fn"))


@pytest.mark.parametrize(
    "value, numel, told",
    [
        (pickled.tensor(1, 3, (3,), kind="ComplexFloatStorage"), 3, "is stored as ComplexFloatStorage"),
        (pickled.tensor(1, 24, (24,), kind="QInt8Storage"), 24, "is stored as QInt8Storage"),
        (pickled.call("torch._utils._rebuild_tensor_v3", *FLOAT8), 24, "is of dtype float8_e4m3fn"),
        (pickled.tensor(1, 6, (6,), (0,)), 6, "of shape .* overlaps itself"),
    ],
)
@pytest.mark.parametrize("layout", ["archive", "legacy"])
def test_types_that_are_not_read_are_named_where_they_are_needed(tmp_path, value, numel, told, layout):
    tensors = {"w": pickled.tensor(0, 6, (2, 3)), "v": value}
    if layout == "archive":
        path = pickled.archive(tmp_path / "a.pt", tensors, {0: FLOATS.tobytes(), 1: FLOATS.tobytes()})
    else:
        storages = {0: (6, FLOATS.tobytes()), 1: (numel, FLOATS.tobytes())}
        path = pickled.legacy(tmp_path / "a.pt", tensors, storages)
    reads(path)
    needs = Names(NAMES)
    needs.array("params/v", "v", (6,))
    with pytest.raises(UserError, match=f"a.pt: 'v' {told}"):
        check_tensors(needs, read_tensors(path), "a.pt")


def test_integers_where_parameters_are_needed(tmp_path):
    """Quantized weights whose scales are elsewhere would be read as if they were the weights."""
    path = pickled.state_dict(tmp_path / "a.pt", {"w": np.ones((2, 3), np.int64)})
    with pytest.raises(UserError, match="of integers: w"):
        check_tensors(NAMES, read_tensors(path), "a.pt")


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "pickle"])
def test_numpy_arrays_in_place_of_tensors(tmp_path, protocol, zipped):
    arrays = {"w": FLOATS.reshape(2, 3), "turned": np.asfortranarray(FLOATS.reshape(2, 3)), "half": np.float16([1.5])}
    body = pickle.dumps({"model": arrays, "names": np.array(["a", "b"]), "objects": np.array([{}, None])}, protocol)
    if zipped:
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
            file.writestr("archive/data.pkl", body)
    else:
        (tmp_path / "a.pt").write_bytes(body)
    found = read_tensors(tmp_path / "a.pt")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "dtype, shape, data",
    [
        ("O8", (1,), b"\x10" * 8),
        ("f4", (7,), FLOATS.tobytes()),
        ("f4", (-1,), FLOATS.tobytes()),
        ("f4", (2**62, 2**62), b""),
        (pickled.value("x") + b"2\x86" * 64, (6,), FLOATS.tobytes()),
    ],
)
def test_arrays_that_lie_are_none(tmp_path, dtype, shape, data):
    kind = pickled.call("numpy.dtype", dtype, False, True)
    raw = b"B" + len(data).to_bytes(4, "little") + data
    start = pickled.call("numpy.core.multiarray._reconstruct", pickled.named("numpy.ndarray"), (0,), "b")
    sizes = b"(" + b"".join(b"\x8a\x08" + size.to_bytes(8, "little", signed=True) for size in shape) + b"t"
    array = start + pickled.value((1, sizes, kind, False, raw)) + b"b"
    refused(pickled.archive(tmp_path / "a.pt", {"w": array}), "asks to call numpy.* to make 'w'")


def test_a_stand_in_has_no_text_and_no_end_to_follow():
    """Each is made of the one before it, twice: text or a walk of them would take for ever."""
    expression = MADE + b"".join(b"2\x86q\x01" + b"0cother\nfunction\nh\x01R" for _ in range(200))
    value = read_pickle(io.BytesIO(pickled.PROTO + expression + pickled.STOP), "a.pt")
    assert type(value).__name__ == "StandIn" and len(repr(value)) < 200


def test_what_a_file_without_tensors_asks_for_is_told(tmp_path):
    twice = MADE + b"".join(b"2\x86q\x01" + b"0cother\nfunction\nh\x01R" for _ in range(200))
    refused(pickled.archive(tmp_path / "a.pt", {"x": [twice]}), "holds no named tensors.*asks to call other.function")
    name = "x" * 100_000
    line = refused(pickled.archive(tmp_path / "b.pt", {"w": pickled.call(f"m.{name}")}), "asks to call m.xxx")
    assert len(line) < 500
