"""Files of PyTorch's layouts, byte by byte, without PyTorch: what it writes, and what it never would."""

import struct
import zipfile

import numpy as np
import pytest

from dalle_jax.errors import UserError
from dalle_jax.weights.reading import read_tensors

PROTO, STOP = b"\x80\x02", b"."
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "bfloat16": "BFloat16Storage"}


def value(x):
    """A plain value; bytes are an expression that is there already."""
    if isinstance(x, bytes):
        return x
    if isinstance(x, str):
        return b"X" + struct.pack("<I", len(x.encode())) + x.encode()
    if isinstance(x, bool) or x is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[x]
    if isinstance(x, int):
        return b"J" + struct.pack("<i", x) if abs(x) < 2**31 else b"\x8a\x08" + struct.pack("<q", x)
    if isinstance(x, dict):
        return b"}(" + b"".join(value(key) + value(item) for key, item in x.items()) + b"u"
    if isinstance(x, list):
        return b"](" + b"".join(map(value, x)) + b"e"
    return b"(" + b"".join(map(value, x)) + b"t"


def named(dotted):
    module, name = dotted.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode()


def call(dotted, *args):
    return named(dotted) + value(args) + b"R"


def instance(dotted, state):
    """An object of a class, made as Python makes it and given its state."""
    return named(dotted) + b")\x81" + value(state) + b"b"


def storage(key, numel, kind="FloatStorage"):
    return value(("storage", named(f"torch.{kind}"), str(key), "cpu", numel)) + b"Q"


def tensor(key, numel, shape, strides=None, offset=0, kind="FloatStorage"):
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    call_args = (
        storage(key, numel, kind),
        offset,
        tuple(shape),
        tuple(strides),
        False,
        call("collections.OrderedDict"),
    )
    return call("torch._utils._rebuild_tensor_v2", *call_args)


def archive(path, expression, data=(), extra=(), root="archive", compression=zipfile.ZIP_STORED):
    """Writes a zip archive: the pickle of an expression, and the bytes of its storages by key."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", PROTO + value(expression) + STOP)
        for key, content in dict(data).items():
            file.writestr(f"{root}/data/{key}", content)
        for name, content in dict(extra).items():
            file.writestr(name, content)
    return path


def state_dict(path, arrays, wrap=lambda tensors: tensors, **options):
    """Writes arrays as `torch.save` writes a state dict."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    tensors = {
        name: tensor(i, array.size, array.shape, kind=STORAGES[array.dtype.name])
        for i, (name, array) in enumerate(arrays.items())
    }
    contents = {i: array.tobytes() for i, array in enumerate(arrays.values())}
    return archive(path, wrap(tensors), contents, **options)


def legacy(path, expression, storages):
    """Writes the layout before zip archives. `storages`: (numel, bytes) by key."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}
    magic = b"\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    parts = (magic, 1001, machine, expression, [str(key) for key in storages])
    body = b"".join(PROTO + value(part) + STOP for part in parts)
    path.write_bytes(body + b"".join(struct.pack("<q", n) + content for n, content in storages.values()))
    return path


def refused(path, message):
    """A file is refused by one line of text that names it; gives the line."""
    with pytest.raises(UserError, match=message) as error:
        read_tensors(path)
    line = str(error.value)
    assert "\n" not in line and path.name in line and len(line) < 1000
    return line
