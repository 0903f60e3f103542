"""The folder of a run: its config beside its results, so that an old folder is either continued or refused."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from dalle_jax.code_version import code_version
from dalle_jax.config import FORMAT_VERSION, differing_keys, read_json, to_json, write_json
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path, is_remote

MAY_CHANGE = (
    "num_steps",
    "decay_steps",
    "log_every",
    "eval_every",
    "eval_batches",
    "preview_every",
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "keep_every",
    "watchdog_seconds",
    "workers",
    "prefetch",
    "max_bad_fraction",
)
"""Last parts of the keys that a resumed run may set anew: how long it goes on, when it gives up, what is previewed."""

SECTIONS_MAY_CHANGE = ("mesh",)
"""Sections that it may set anew: checkpoints are restored onto any mesh (the order of sums is then another)."""


_DATA_AT_FIRST = {"held_out_by": "key", "key": "first_dot"}
"""Keys that `data`, and each part of a mixture, did not have at first, with values that say what was done then. What a
run trained on must not be held out later, so it is not for new defaults to say."""


@dataclasses.dataclass(frozen=True)
class Workdir:
    """An open work directory."""

    path: epath.Path
    config: dict[str, Any]
    """As written in `config.json`."""
    resumed: bool
    """Whether the folder held this run already."""


def open_workdir(path: epath.PathLike, config: Any) -> Workdir:
    """Begins a run in a folder, or continues the one that is there.

    `config.json` holds `{"format_version", "commit", "config"}`; it is written by process 0, and again where keys of
    `MAY_CHANGE` have changed.

    Args:
      path: made where it does not exist; local or `gs://`.
      config: all of the run's config: a dataclass, or a mapping of plain values, dataclasses or `ConfigDict`s.

    Raises:
      UserError: the folder holds a run of another config (the message names the keys), of an unknown format version,
        or files of something else; or it cannot be made.
    """
    path = as_path(path)
    file = path / "config.json"
    plain = _plain(config)
    record = {"format_version": FORMAT_VERSION, "commit": code_version(), "config": plain}
    if not file.exists():
        if path.is_dir() and any((stage / "checkpoints").exists() for stage in path.iterdir()):
            raise UserError(f"{path} holds checkpoints but no config.json: choose another --workdir")
        if jax.process_index() == 0:
            try:
                write_json(file, record)
            except (NotADirectoryError, PermissionError) as error:
                raise UserError(f"cannot write into the work directory {path}: {error.strerror}") from error
        return Workdir(path, plain, resumed=False)
    if check_workdir(path, config) and jax.process_index() == 0:
        write_json(file, record)
    return Workdir(path, plain, resumed=True)


def check_workdir(path: epath.PathLike, config: Any) -> list[str]:
    """Compares a run with the config that is to go on with it; writes nothing.

    A field that a dataclass has gained since the run was begun counts as its default, which is what the code did then.

    Args:
      path: of the run.
      config: as in `open_workdir`.

    Returns:
      Dotted keys that are set anew, all of which may be.

    Raises:
      UserError: it is a run of another config, or cannot be read (see `read_workdir`).
    """
    old, plain = _with_new_fields(read_workdir(path), config), _plain(config)
    changed = differing_keys(old, plain)
    fatal = [key for key in changed if not _may_change(key)]
    if fatal:
        shown = ", ".join(f"{key} ({_get(old, key)!r} there, {_get(plain, key)!r} now)" for key in fatal[:5])
        more = f" and {len(fatal) - 5} more" if len(fatal) > 5 else ""
        raise UserError(
            f"{path} holds a run of another config: {shown}{more}; set them back or choose another --workdir"
        )
    return changed


def read_workdir(path: epath.PathLike) -> dict[str, Any]:
    """The config of a run, as nested dicts; keys of `data` that it was written without say what was done then.

    Raises:
      UserError: it is missing, broken, or of a format that this version does not know.
    """
    return read_record(path)["config"]


def read_record(path: epath.PathLike) -> dict[str, Any]:
    """All that `config.json` holds: `format_version`, `commit`, and `config` as `read_workdir` gives it.

    Raises:
      UserError: as `read_workdir`.
    """
    file = as_path(path) / "config.json"
    record = read_json(file)
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {version!r} and this version reads {FORMAT_VERSION}: "
            f"use the code that wrote it ({record.get('commit', 'unknown') if isinstance(record, dict) else 'unknown'})"
        )
    if not isinstance(record.get("config"), dict):
        raise UserError(f"{file} holds no config: it is damaged, or not of launch.train")
    return record | {"config": _completed(record["config"])}


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    data = config.get("data")
    if not isinstance(data, dict) or "source" not in data:
        return config
    data = _DATA_AT_FIRST | data
    if isinstance(data.get("mixture"), list):
        data["mixture"] = [_DATA_AT_FIRST | part for part in data["mixture"]]
    return config | {"data": data}


def saved_steps(stage_dir: epath.PathLike) -> list[int]:
    """The steps of a stage's checkpoints, oldest first; empty where there are none."""
    directory = as_path(stage_dir) / "checkpoints"
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and _is_whole(path))


def _is_whole(checkpoint: epath.Path) -> bool:
    """On a disk, saving ends with a rename; in a bucket, where that copies everything, with a file that says so."""
    return not is_remote(checkpoint) or (checkpoint / "commit_success.txt").exists()


def _plain(config: Any) -> Any:
    """What reading the written JSON would give: lists for tuples, names for enums."""
    is_one = dataclasses.is_dataclass(config) and not isinstance(config, type)
    return json.loads(to_json(dataclasses.asdict(config) if is_one else config))


def _with_new_fields(old: Any, config: Any) -> Any:
    """What an older run holds in the place of `config`, with the fields that it lacks at their defaults."""
    if isinstance(config, tuple | list) and isinstance(old, list) and len(old) == len(config):
        return [_with_new_fields(*pair) for pair in zip(old, config, strict=True)]
    if not isinstance(old, Mapping):
        return old
    if isinstance(config, Mapping):
        return {key: _with_new_fields(value, config.get(key)) for key, value in old.items()}
    if not dataclasses.is_dataclass(config):
        return old
    filled = {key: _with_new_fields(value, getattr(config, key, None)) for key, value in old.items()}
    for field in dataclasses.fields(config):
        if field.name not in filled and field.default is not dataclasses.MISSING:
            filled[field.name] = _plain(field.default)
    return filled


def _may_change(key: str) -> bool:
    parts = key.split(".")
    return parts[-1] in MAY_CHANGE or parts[0] in SECTIONS_MAY_CHANGE


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part, "absent") if isinstance(value, Mapping) else "absent"
    return value
