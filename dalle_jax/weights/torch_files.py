"""Files that PyTorch writes, read without it: state dicts, whole modules and TorchScript."""

import functools
import io
from typing import Any

from dalle_jax.errors import UserError
from dalle_jax.weights.archive import ZIP_MAGIC, Member, members
from dalle_jax.weights.pickles import read_pickle
from dalle_jax.weights.stand_ins import shortened
from dalle_jax.weights.torch_legacy import read_legacy
from dalle_jax.weights.torch_tensors import TENSOR_CALLS, Storage, StorageName


def read_torch(path: str) -> Any:
    """What `torch.save` or `torch.jit.save` put into a file: plain values, `Tensor`s, and stand-ins for objects.

    Args:
      path: of a zip archive (PyTorch 1.6 and newer, TorchScript), or of a file of the layout before it.

    Raises:
      UserError: the file is damaged, of another kind, or lies about its sizes.
    """
    with open(path, "rb") as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    return _read_archive(path) if is_archive else read_legacy(path)


def is_torchscript(path: str) -> bool:
    """Whether a file is an archive with a program in it, as OpenAI published CLIP."""
    with open(path, "rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return False
    return any(name.endswith("/constants.pkl") for name in members(path))


def _read_archive(path: str) -> Any:
    found = members(path)
    roots = [name.removesuffix("data.pkl") for name in found if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        held = ", ".join(f"'{shortened(name)}'" for name in list(found)[:3])
        raise UserError(
            f"{path} is a zip archive, but none of PyTorch's: those hold one member 'NAME/data.pkl', and this one "
            f"holds {held or 'nothing'}"
        )
    root = roots[0]
    if root + "byteorder" in found and _content(path, root + "byteorder", found) != b"little":
        raise UserError(f"{path} was written on a big-endian machine, which is not read here")
    storage = functools.partial(_archive_storage, path, root, found)
    data = io.BytesIO(_content(path, root + "data.pkl", found))
    return read_pickle(data, path, TENSOR_CALLS, storage)


def _content(path: str, name: str, found: dict[str, Member]) -> bytes:
    if not found[name].stored:
        raise UserError(f"{path}: the member '{name}' is compressed, and PyTorch stores it as it is")
    with open(path, "rb") as file:
        file.seek(found[name].offset)
        return file.read(found[name].size)


def _archive_storage(path: str, root: str, found: dict[str, Member], identity: Any) -> Storage:
    storage = StorageName.of(identity)
    name = f"{root}data/{storage.key}"
    if name not in found:
        raise UserError(f"{path} is damaged: it has no member '{name}', where numbers of a tensor should be")
    member = found[name]
    if storage.fault:
        return Storage(path, member.offset, storage.dtype, storage.numel, storage.fault)
    if not member.stored or member.size != storage.nbytes:
        raise UserError(
            f"{path} is refused: its member '{name}' should hold {storage.nbytes} bytes ({storage.numel} of "
            f"{storage.dtype}) and holds {member.size}{'' if member.stored else ', compressed'}"
        )
    return Storage(path, member.offset, storage.dtype, storage.numel)
