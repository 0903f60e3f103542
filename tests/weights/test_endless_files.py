"""Small files that would take for ever to read, or to complain of: values that hold themselves, or one value often."""

import numpy as np
import pytest

from tests.weights import pickled
from tests.weights.pickled import refused

FLOATS = {0: np.arange(6, dtype=np.float32).tobytes()}
TWINS = pickled.value("x") + b"2\x86" * 64  # a pair of the same pair of the same pair...


def module(**state):
    return pickled.instance("a.Module", {"_parameters": {"w": pickled.tensor(0, 6, (6,))}, **state})


@pytest.mark.parametrize("use", ["dict", "items", "set"])
def test_keys_whose_hash_would_take_for_ever(tmp_path, use):
    expression = {
        "dict": b"}" + TWINS + b"Ns",
        "items": pickled.call("collections.OrderedDict", [(TWINS, None)]),
        "set": pickled.call("builtins.set", [TWINS]),
    }[use]
    refused(pickled.archive(tmp_path / "slow.pt", expression), "tuple of tuples")


@pytest.mark.parametrize(
    "expression, message",
    [
        (pickled.tensor(0, TWINS, (6,)), "object of tuple among them"),
        (pickled.tensor(0, 6, (TWINS,), (1,)), "object of tuple among them"),
        (pickled.call("torch._utils._rebuild_tensor_v2", pickled.storage(0, 6), 0, TWINS, (1,)), "object of tuple"),
        (pickled.call("torch._utils._rebuild_tensor_v2", pickled.storage(0, 6), TWINS, (6,), (1,)), "object of tuple"),
        (pickled.value(("storage", TWINS, "0", "cpu", 6)) + b"Q", "stores numbers as an object of tuple"),
        (pickled.value((TWINS, 0, "0", "cpu", 6)) + b"Q", "stores numbers as an object of int"),
        (
            pickled.call(
                "torch._utils._rebuild_tensor_v3", pickled.storage(0, 6), 0, (6,), (1,), False, None, TWINS
            ),
            "of dtype an object of tuple",
        ),
        (pickled.call("torch._tensor._rebuild_from_type_v2", TWINS, None, (), None), "call an object of tuple"),
    ],
)  # fmt: skip
def test_values_whose_text_would_fill_any_memory(tmp_path, expression, message):
    refused(pickled.archive(tmp_path / "long.pt", {"w": expression}, FLOATS), message)


def test_numbers_and_shapes_whose_text_would_be_long(tmp_path):
    huge = b"\x8b" + (5000).to_bytes(4, "little") + b"\x01" * 5000  # an integer of 5,000 bytes
    refused(pickled.archive(tmp_path / "huge.pt", {"w": pickled.tensor(0, 6, (huge, 0), (1, 1))}, FLOATS), "63 bits")
    many = (1,) * 100_000
    refused(pickled.archive(tmp_path / "many.pt", {"w": pickled.tensor(0, 6, many, many)}, FLOATS), "100000 sizes")


def test_names_that_are_no_strings(tmp_path):
    """Of a module's attributes; as text they would be as long as those values."""
    holder = pickled.named("a.Class") + b")\x81" + TWINS + b"b"
    tensor = pickled.tensor(0, 6, (6,))
    inner = pickled.instance("a.Module", b"}(" + holder + tensor + pickled.value("w") + tensor + b"u")
    path = pickled.archive(tmp_path / "names.pt", pickled.instance("a.Module", {"inner": inner}), FLOATS)
    assert list(pickled.read_tensors(path)) == ["inner.w"]


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_state_dicts_that_contain_each_other(tmp_path, key):
    loop = b"}q\x01" + pickled.value(key) + b"h\x01s"
    refused(pickled.archive(tmp_path / "loop.pt", loop), "contain each other")
    deep = (b"}" + pickled.value(key)) * 1500 + b"}" + b"s" * 1500
    refused(pickled.archive(tmp_path / "deep.pt", deep), "contain each other")


def test_modules_that_contain_each_other(tmp_path):
    loop = pickled.named("a.Module") + b")\x81q\x01" + pickled.value({"_parameters": {}, "_buffers": {}, "_modules":
            {"inner": b"h\x01"}}) + b"b"  # fmt: skip
    refused(pickled.archive(tmp_path / "loop.pt", loop), "contain each other")
    # Twice the same module in each of 64: its tensor would have more names than there is memory.
    twice = module() + b"q\x01" + b"".join(
        b"0" + pickled.instance("a.Module", {"a": b"h\x01", "b": b"h\x01"}) + b"q\x01" for _ in range(64)
    )  # fmt: skip
    refused(pickled.archive(tmp_path / "twice.pt", twice, FLOATS), "contain each other")


@pytest.mark.parametrize(
    "table, value, found",
    [("_buffers", [1], "list"), ("_modules", [1], "list"), ("_non_persistent_buffers_set", 3, "int")],
)
def test_modules_whose_tables_are_none(tmp_path, table, value, found):
    path = pickled.archive(tmp_path / "odd.pt", module(**{table: value}), FLOATS)
    refused(path, f"'{table}' of a module is an object of {found}")
    path = pickled.archive(tmp_path / "none.pt", module(**{table: None}), FLOATS)
    assert list(pickled.read_tensors(path)) == ["w"]
