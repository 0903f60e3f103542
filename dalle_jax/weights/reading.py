"""From a path to named tensors, whatever wrote the file."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dalle_jax.errors import UserError
from dalle_jax.weights.safetensors_files import is_safetensors, read_safetensors
from dalle_jax.weights.tensors import Tensor, local_path
from dalle_jax.weights.torch_files import named_tensors, read_torch

_WRAPPERS = ("module.", "_orig_mod.")
"""What PyTorch's parallel and compiled modules put before every name."""

_INDEX = ".index.json"


def read_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors of a file of weights by the names they have there; their numbers stay in the file.

    Args:
      path: a `.pt`, `.bin`, `.ckpt`, `.pkl` or `.safetensors` file (its content counts, not its name), or the
        `.index.json` of a checkpoint in several.

    Raises:
      UserError: the file is missing, damaged or of another kind, or it asks for a call that weights do not need.
    """
    path = local_path(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, where a file of weights should be")
    if path.endswith(_INDEX):
        tensors = _read_index(path)
    elif is_safetensors(path):
        tensors = read_safetensors(path)
    else:
        tensors = named_tensors(read_torch(path), path)
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def find_file(folder: str, names: Sequence[str]) -> str | None:
    """The first of some files that a folder has."""
    return next((path for name in names if os.path.isfile(path := os.path.join(folder, name))), None)


def read_settings(path: str) -> dict[str, Any]:
    """A JSON object that stands beside weights, `config.json` say.

    Raises:
      UserError: it cannot be read, or is no object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
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
        shards[file] = read_tensors(os.path.join(os.path.dirname(path), file))
    missing = [name for name, file in files.items() if name not in shards[file]]
    if missing:
        raise UserError(f"{path}: '{missing[0]}' is not in '{files[missing[0]]}' ({len(missing)} such names)")
    return {name: shards[file][name] for name, file in files.items()}
