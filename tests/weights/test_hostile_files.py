"""Files that lie, are broken, or would run a command: each is one clear refusal, and nothing in it is run."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dalle_jax.errors import UserError
from dalle_jax.weights.reading import read_tensors
from tests.weights import pickled
from tests.weights.pickled import refused

FLOATS = np.arange(6, dtype=np.float32)


class Runs:
    """Pickles as a command that leaves a file behind."""

    def __init__(self, command, *args):
        self.reduced = command, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("nested", [False, True])
def test_a_command_is_named_and_not_run(tmp_path, protocol, nested):
    proof = tmp_path / "proof"
    evil = Runs(os.system, f"touch {proof}")
    content = {"weight": 1, "state_dict": {"a": [0, ({"b": evil},)]}} if nested else evil
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(content, protocol))
    refused(path, r"(posix|nt|os)\.system")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(content, protocol))
    refused(tmp_path / "plain.pkl", r"(posix|nt|os)\.system")
    # The same pickle as the value of a file of the older layout.
    body = pickle.dumps(content, protocol)
    pickled.legacy(tmp_path / "old.pt", {}, {})
    old = (tmp_path / "old.pt").read_bytes().replace(pickled.PROTO + pickled.value({}) + pickled.STOP, body)
    (tmp_path / "old.pt").write_bytes(old)
    refused(tmp_path / "old.pt", r"(posix|nt|os)\.system")
    assert not proof.exists()


@pytest.mark.parametrize(
    "name, args",
    [
        ("builtins.eval", ("1",)),
        ("builtins.exec", ("1",)),
        ("builtins.getattr", (1, "x")),
        ("builtins.__import__", ("os",)),
        ("builtins.open", ("f", "w")),
        ("subprocess.Popen", (["touch"],)),
        ("torch.load", ("f",)),
        ("torch.storage._load_from_bytes", ("x",)),
        ("torch.nn.modules.linear.Linear", (1, 1)),
        ("operator.attrgetter", ("system",)),
        ("unknown.package.function", ()),
    ],
)
def test_a_tensor_that_a_call_outside_of_the_list_makes(tmp_path, name, args):
    called = pickled.call(name, *args)
    for i, tensor in enumerate(
        (
            called,
            pickled.call("torch._utils._rebuild_parameter", called),
            pickled.call("torch._utils._rebuild_tensor_v2", called, 0, (6,), (1,), False, {}),
            pickled.call("torch._tensor._rebuild_from_type_v2", pickled.named(name), None, args, None),
        )
    ):
        path = pickled.archive(tmp_path / f"{i}.pt", {"weight": tensor}, {0: FLOATS.tobytes()})
        refused(path, f"asks to call {name} to make 'weight', which no weights need; nothing in it was run")


def test_a_call_in_the_oldest_way_of_making_objects(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as file:
        file.writestr("archive/data.pkl", b"(S'touch proof'\nios\nsystem\n.")
    refused(tmp_path / "evil.pt", r"os\.system")
    with zipfile.ZipFile(tmp_path / "object.pt", "w") as file:
        file.writestr("archive/data.pkl", b"(cos\nsystem\nS'touch proof'\no.")
    refused(tmp_path / "object.pt", r"os\.system")


def test_an_object_cannot_be_called(tmp_path):
    inner = pickled.instance("some.Class", {})
    refused(pickled.archive(tmp_path / "evil.pt", inner + pickled.value(("x",)) + b"R"), "call an object of StandIn")


def test_unknown_classes_are_inert(tmp_path):
    """Lightning's files name classes as keys, and hold objects of them; what has a state or items keeps them."""
    expression = {
        pickled.named("pytorch_lightning.callbacks.ModelCheckpoint"): {"best": pickled.tensor(0, 6, (6,))},
        "hyper_parameters": pickled.instance("omegaconf.DictConfig", {"_content": {"a": 1}}),
        "state_dict": pickled.call("collections.OrderedDict") + b"(" + pickled.value("w") + pickled.tensor(0, 6, (2, 3))
        + b"u" + pickled.value({"_metadata": {}}) + b"b",
    }  # fmt: skip
    tensors = read_tensors(pickled.archive(tmp_path / "lightning.ckpt", expression, {0: FLOATS.tobytes()}))
    assert list(tensors) == ["w"]
    np.testing.assert_array_equal(tensors["w"].read(), FLOATS.reshape(2, 3))


@pytest.mark.parametrize(
    "expression, message",
    [
        (pickled.tensor(0, 6, (7,)), "reaches over the end"),
        (pickled.tensor(0, 6, (2, 3), offset=1), "reaches over the end"),
        (pickled.tensor(0, 6, (2, 3), (4, 1)), "reaches over the end"),
        (pickled.tensor(0, 6, (2, 3), (1, 1)), "overlaps itself"),
        (pickled.tensor(0, 6, (10**12,), (0,)), "overlaps itself"),
        (pickled.tensor(0, 6, (2, 3), (-3, 1)), "not sizes"),
        (pickled.tensor(0, 6, (-2, -3)), "not sizes"),
        (pickled.tensor(0, 6, (2, 3), offset=-1), "not sizes"),
        (pickled.tensor(0, 6, (2, 3), (1,)), "1 strides"),
        (pickled.tensor(0, 7, (7,)), "should hold 28 bytes"),
        (pickled.tensor(0, 3, (3,)), "should hold 12 bytes"),
        (pickled.tensor(0, 6, (6,), kind="LongStorage"), "should hold 48 bytes"),
        (pickled.tensor(0, 6, (6,), kind="QInt8Storage"), "QInt8Storage"),
        (pickled.tensor("../data.pkl", 6, (6,)), "no member"),
        (pickled.tensor(1, 6, (6,)), "no member"),
        (pickled.call("torch._utils._rebuild_tensor_v2", 1, 0, (6,), (1,)), "no storage"),
    ],
)
def test_a_tensor_whose_size_lies(tmp_path, expression, message):
    refused(pickled.archive(tmp_path / "lies.pt", {"w": expression}, {0: FLOATS.tobytes()}), message)


def test_the_older_layout_lies_too(tmp_path):
    good = {"w": pickled.tensor(0, 6, (2, 3))}
    np.testing.assert_array_equal(
        read_tensors(pickled.legacy(tmp_path / "good.pt", good, {0: (6, FLOATS.tobytes())}))["w"].read(),
        FLOATS.reshape(2, 3),
    )
    refused(pickled.legacy(tmp_path / "size.pt", good, {0: (5, FLOATS.tobytes())}), "another size")
    refused(pickled.legacy(tmp_path / "cut.pt", good, {0: (6, FLOATS.tobytes()[:-1])}), "truncated")
    refused(pickled.legacy(tmp_path / "keys.pt", good, {1: (6, FLOATS.tobytes())}), "list of storages")
    numbered = (tmp_path / "good.pt").read_bytes().replace(pickled.value(["0"]), pickled.value([0]))
    (tmp_path / "numbered.pt").write_bytes(numbered)
    refused(tmp_path / "numbered.pt", "list of storages")
    endless = pickled.PROTO + b"\x8e" + struct.pack("<Q", 1 << 62)  # bytes, as many as no machine has
    (tmp_path / "endless.pt").write_bytes(numbered.replace(pickled.PROTO + pickled.value(good), endless))
    refused(tmp_path / "endless.pt", "damaged")
    big = {"w": pickled.tensor(0, 7, (7,)), "v": pickled.tensor(0, 6, (6,))}
    refused(pickled.legacy(tmp_path / "two.pt", big, {0: (6, FLOATS.tobytes())}), "two sizes")


@pytest.mark.parametrize("name", ["../evil", "archive/../../evil", "/etc/evil", "archive\\..\\evil", "C:evil"])
def test_a_path_that_climbs_out(tmp_path, name):
    path = pickled.archive(tmp_path / "climbs.pt", {"w": pickled.tensor(0, 6, (6,))}, {0: FLOATS.tobytes()})
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo("x")
        info.filename = name  # as it is, on every system
        file.writestr(info, b"evil")
    refused(path, "leads out of the archive")


def test_members_that_share_bytes(tmp_path):
    """Inside the numbers of one member stands the header of another, and the archive's index points there."""
    name = "archive/data/1"
    header = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 8, 8, len(name), 0) + name.encode()
    numbers = header + b"\0" * (64 - len(header))
    path = pickled.archive(
        tmp_path / "shared.pt", {"w": pickled.tensor(0, 16, (16,))}, {0: numbers, 1: b"\0" * 8}
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02")  # of the last member
    content[entry + 42 : entry + 46] = struct.pack("<I", content.find(header))
    path.write_bytes(content)
    refused(path, "overlap")


def test_two_members_of_one_name(tmp_path):
    path = pickled.archive(tmp_path / "twice.pt", {"w": pickled.tensor(0, 6, (6,))}, {0: FLOATS.tobytes()})
    with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", b"\0" * 24)
    refused(path, "one name")


def test_compressed_members_are_not_what_pytorch_writes(tmp_path):
    path = pickled.state_dict(tmp_path / "bomb.pt", {"w": np.zeros(4096, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "compressed")


def test_every_truncation_is_refused(tmp_path):
    content = pickled.state_dict(tmp_path / "whole.pt", {"w": FLOATS}).read_bytes()
    old = pickled.legacy(
        tmp_path / "old.pt", {"w": pickled.tensor(0, 6, (6,))}, {0: (6, FLOATS.tobytes())}
    ).read_bytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}).encode()
    safe = struct.pack("<Q", len(header)) + header + FLOATS.tobytes()
    for name, whole in (("cut.pt", content), ("cut.old", old), ("cut.safetensors", safe)):
        path = tmp_path / name
        path.write_bytes(whole)
        np.testing.assert_array_equal(read_tensors(path)["w"].read(), FLOATS)
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match=name):
                read_tensors(path)


@pytest.mark.parametrize("layout", ["archive", "legacy"])
def test_flipped_bytes_never_give_another_error(tmp_path, layout):
    """Nor a hang, nor memory: what still reads has tensors inside the file."""
    rng = np.random.default_rng(0)
    if layout == "archive":
        file = pickled.state_dict(tmp_path / "whole.pt", {"w": FLOATS, "v": np.ones((2, 2), np.float16)})
    else:
        storages = {0: (6, FLOATS.tobytes()), 1: (4, FLOATS[:4].tobytes())}
        file = pickled.legacy(
            tmp_path / "whole.pt", {"w": pickled.tensor(0, 6, (2, 3)), "v": pickled.tensor(1, 4, (2, 2))}, storages
        )
    content = file.read_bytes()
    path = tmp_path / "flipped.pt"
    for _ in range(400):
        flipped = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            flipped[place] = rng.integers(256)
        path.write_bytes(flipped)
        try:
            for tensor in read_tensors(path).values():
                assert tensor.offset + tensor.read().nbytes <= len(content)
        except UserError:
            pass


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"w": {"dtype": "F32", "shape": [7], "data_offsets": [0, 24]}}, "damaged"),
        ({"w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 28]}}, "damaged"),
        (
            {
                "w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]},
                "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            },
            "damaged",
        ),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}, "damaged"),
        ({"w": {"dtype": "F8_E4M3", "shape": [24], "data_offsets": [0, 24]}}, "'w' is of type F8_E4M3"),
    ],
)
def test_safetensors_that_lie(tmp_path, entries, message):
    header = json.dumps(entries).encode()
    path = tmp_path / "lies.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + FLOATS.tobytes())
    refused(path, message)


def test_shards_stay_beside_their_index(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    for file in ("../other.safetensors", "/etc/passwd", "a/b", ".."):
        index.write_text(json.dumps({"weight_map": {"w": file}}))
        refused(index, "not beside it")
    pickled.state_dict(tmp_path / "a.bin", {"v": FLOATS})
    index.write_text(json.dumps({"weight_map": {"w": "a.bin"}}))
    refused(index, "'w' is not in 'a.bin'")
    index.write_text(json.dumps({"weight_map": {"v": "a.bin"}}))
    np.testing.assert_array_equal(read_tensors(index)["v"].read(), FLOATS)
    index.write_text(json.dumps({"weight_map": {"v": index.name}}))
    refused(index, "is an index too")
    index.write_text(json.dumps([1]))
    refused(index, "no JSON object")


def test_what_is_no_file_of_weights(tmp_path):
    refused(tmp_path / "absent.pt", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(tmp_path / "empty.pt", "not a file of weights")
    (tmp_path / "text.pt").write_text("hello, these are not weights")
    refused(tmp_path / "text.pt", "not a file of weights")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", b"hello")
    refused(tmp_path / "other.zip", "none of PyTorch's")
    refused(pickled.archive(tmp_path / "list.pt", [1, 2]), "no named tensors")
    with pytest.raises(UserError, match="copy it"):
        read_tensors("gs://bucket/weights.pt")


def test_reading_imports_nothing_that_a_file_names(tmp_path):
    """In a process of its own, a file that names a module that would leave a trace when imported."""
    (tmp_path / "trace.py").write_text("raise SystemExit('imported')")
    path = pickled.archive(
        tmp_path / "names.pt", {"w": pickled.tensor(0, 6, (6,)), "x": pickled.instance("trace.Thing", {})},
        {0: FLOATS.tobytes()},
    )  # fmt: skip
    code = "import sys; from dalle_jax.weights.reading import read_tensors; print(read_tensors(sys.argv[1])['w'].shape)"
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "(6,)"
