"""Files that PyTorch writes, read without it: state dicts, whole modules and TorchScript."""

import functools
import io
from collections.abc import Iterator
from typing import Any

from dalle_jax.errors import UserError
from dalle_jax.weights.archive import Member, members
from dalle_jax.weights.pickles import StandIn, called, read_pickle
from dalle_jax.weights.tensors import Tensor
from dalle_jax.weights.torch_legacy import read_legacy
from dalle_jax.weights.torch_tensors import Storage, StorageName, tensor_calls

ZIP_MAGIC = b"PK\x03\x04"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_TABLES, _TEMPORARY = ("_parameters", "_buffers", "_modules"), "_non_persistent_buffers_set"

_MAX_WRAPPERS, _MAX_MEMBERS, _MAX_NAME = 10, 200_000, 1_000
"""More than any checkpoint has; a small file can have its dicts and modules hold each other, or one of them often."""


def read_torch(path: str) -> Any:
    """What `torch.save` or `torch.jit.save` put into a file: plain values, `Tensor`s, and stand-ins for objects.

    Args:
      path: of a zip archive (PyTorch 1.6 and newer, TorchScript), or of a file of the layout before it.

    Raises:
      UserError: the file is damaged, lies about its sizes, or asks for a call that weights do not need.
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


def named_tensors(value: Any, path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by PyTorch's names.

    Args:
      value: as `read_torch` gives it: a state dict, a checkpoint with one under `state_dict`, or a module.
      path: for messages.

    Raises:
      UserError: there are none.
    """
    value = _unwrapped(value, path)
    if isinstance(value, dict):
        tensors = {name: item for name, item in value.items() if isinstance(item, Tensor) and isinstance(name, str)}
    elif isinstance(value, StandIn):
        tensors = dict(_module_tensors(value, path))
    else:
        tensors = {}
    if not tensors:
        raise UserError(f"{path} holds no named tensors: is it a checkpoint of a model?")
    return tensors


def _unwrapped(value: Any, path: str) -> Any:
    """The state dict or module of a checkpoint that holds other things beside it."""
    for _ in range(_MAX_WRAPPERS):
        inner = [value[key] for key in _WRAPPERS if key in value] if isinstance(value, dict) else []
        inner = [item for item in inner if isinstance(item, dict | StandIn)]
        if not inner:
            return value
        value = inner[0]
    raise UserError(f"{path} is refused: its state dicts contain each other")


def _module_tensors(module: StandIn, path: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a pickled `nn.Module`, or of a TorchScript object."""
    waiting, count = [("", module)], 0
    while waiting:
        prefix, current = waiting.pop()
        found = _members(current, path)
        count += 1 + len(found)
        if count > _MAX_MEMBERS or any(len(prefix) + len(name) > _MAX_NAME for name in found):
            raise UserError(f"{path} is refused: its modules contain each other")
        for name, item in found.items():
            if isinstance(item, Tensor):
                yield f"{prefix}{name}", item
            elif isinstance(item, StandIn):
                waiting.append((f"{prefix}{name}.", item))


def _members(module: StandIn, path: str) -> dict[str, Tensor | StandIn]:
    """Tensors and modules that a module holds, by attribute; of a pickled `nn.Module`, those of its state dict."""
    state = module.state if isinstance(module.state, dict) else {}
    if isinstance(state.get("_parameters"), dict):
        kinds: dict[str, type] = dict.fromkeys(_TABLES, dict) | {_TEMPORARY: set}
        held = {name: state[name] if state.get(name) is not None else kind() for name, kind in kinds.items()}
        wrong = [name for name, kind in kinds.items() if not isinstance(held[name], kind)]
        if wrong:
            raise UserError(f"{path} is refused: '{wrong[0]}' of a module is {called(held[wrong[0]])}")
        parameters, buffers, modules = (held[name] for name in _TABLES)
        state = parameters | {name: item for name, item in buffers.items() if name not in held[_TEMPORARY]} | modules
    # Other names have no use, and no text that is sure to end.
    return {name: item for name, item in state.items() if isinstance(name, str) and isinstance(item, Tensor | StandIn)}


def _read_archive(path: str) -> Any:
    found = members(path)
    roots = [name.removesuffix("data.pkl") for name in found if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"{path} is a zip archive, but none of PyTorch's: those hold one member 'NAME/data.pkl'")
    root = roots[0]
    if root + "byteorder" in found and _content(path, root + "byteorder", found) != b"little":
        raise UserError(f"{path} was written on a big-endian machine, which is not read here")
    storage = functools.partial(_archive_storage, path, root, found)
    data = io.BytesIO(_content(path, root + "data.pkl", found))
    return read_pickle(data, path, tensor_calls(path), storage)


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
    if not member.stored or member.size != storage.nbytes:
        raise UserError(
            f"{path} is refused: its member '{name}' should hold {storage.nbytes} bytes ({storage.numel} of "
            f"{storage.dtype}) and holds {member.size}{'' if member.stored else ', compressed'}"
        )
    return Storage(path, member.offset, storage.dtype, storage.numel)
