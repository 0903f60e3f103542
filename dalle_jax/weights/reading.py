"""From a path to named tensors, whatever wrote the file."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dalle_jax.errors import UserError
from dalle_jax.fetched import check_fetched
from dalle_jax.weights.msgpack_files import is_msgpack, read_msgpack
from dalle_jax.weights.npz_files import is_npz, read_npz
from dalle_jax.weights.paths import local_path
from dalle_jax.weights.prefixes import unwrapped
from dalle_jax.weights.safetensors_files import is_safetensors, read_safetensors
from dalle_jax.weights.state_dicts import named_tensors
from dalle_jax.weights.tensors import Tensor, Unread
from dalle_jax.weights.torch_files import read_torch

_INDEX = ".index.json"


def read_tensors(path: str | os.PathLike, *, key: str | None = None, prefix: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file of weights by the names they have there; their numbers stay in the file where they can.

    What wrappers of modules put into every name (`module.`, `_orig_mod.`, Lightning's `model.`) is taken out. What
    cannot be read here is `Unread`: it is an error where it is needed.

    Args:
      path: a `.pt`, `.bin`, `.ckpt`, `.pkl`, `.safetensors`, `.npz` or `.msgpack` file (its content counts, not its
        name), or the `.index.json` of a checkpoint in several.
      key: which value of a PyTorch checkpoint is read, where it holds several: `state_dict_ema`, `ema.model`.
      prefix: what the names of the wanted tensors begin with, `clip.` say; it is taken out, and other tensors are left.

    Raises:
      UserError: the file is missing, damaged or of another kind, none of its tensors can be read, or it has no such
        key or prefix, and the message lists those that are there.
    """
    path = local_path(path)
    tensors = unwrapped(_read(path, key), prefix, path)
    adapter = next((name for name in tensors if ".lora_" in name), None)
    if adapter is not None:
        raise UserError(
            f"{path} holds low-rank adapters that are not merged ({adapter}): merge them into weights first"
        )
    return tensors


def _read(path: str, key: str | None) -> dict[str, Tensor]:
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, where a file of weights should be")
    if path.endswith(_INDEX):
        tensors = _read_index(path)
    elif is_safetensors(path):
        tensors = read_safetensors(path)
    elif is_npz(path):
        tensors = read_npz(path)
    elif is_msgpack(path):
        tensors = read_msgpack(path)
    else:
        return named_tensors(read_torch(path), path, key)
    if key is not None:
        raise UserError(f"{path} holds tensors by name and nothing else: leave key='{key}' out")
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    if all(isinstance(tensor, Unread) for tensor in tensors.values()):
        next(iter(tensors.values())).read()
    return tensors


def find_file(folder: str, names: Sequence[str]) -> str | None:
    """The first of some files that a folder has."""
    return next((path for name in names if os.path.isfile(path := os.path.join(folder, name))), None)


def read_settings(path: str) -> dict[str, Any]:
    """A JSON object that stands beside weights, `config.json` say.

    Raises:
      UserError: it cannot be read, or is not an object.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        check_fetched(content, path)
        settings = json.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no JSON object")
    return settings


def _read_index(path: str) -> dict[str, Tensor]:
    files = read_settings(path).get("weight_map")
    if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{path} has no 'weight_map' of names to files")
    shards: dict[str, dict[str, Tensor]] = {}
    for file in sorted(set(files.values())):
        if os.path.basename(file) != file or file in ("", ".", ".."):
            raise UserError(f"{path} is refused: the file '{file}' is not beside it")
        if file.endswith(_INDEX):
            raise UserError(f"{path} is refused: '{file}' is an index too, and holds no numbers")
        shards[file] = _read(local_path(os.path.join(os.path.dirname(path), file)), None)
    missing = [name for name, file in files.items() if name not in shards[file]]
    if missing:
        raise UserError(f"{path}: '{missing[0]}' is not in '{files[missing[0]]}' ({len(missing)} such names)")
    return {name: shards[file][name] for name, file in files.items()}
