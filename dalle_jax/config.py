"""Configs at the border: a person edits a `ConfigDict`, code reads frozen dataclasses.

A config file builds dataclasses and returns `to_config_dict(...)` of them, so that every field, defaults included,
can be overridden on the command line. `from_config_dict` goes the other way and is strict: an unknown, misspelt or
missing key and a value of the wrong type are `UserError`s that name the key.
"""

import dataclasses
import enum
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from etils import epath
from ml_collections import ConfigDict, config_dict

from dalle_jax.errors import UserError, closest
from dalle_jax.storage import as_path, write_whole
from dalle_jax.text_files import decode_text

T = TypeVar("T")

FORMAT_VERSION = 1
"""Version of the layout of a work directory, written into its `config.json`."""


def to_config_dict(value: Any) -> ConfigDict:
    """Turns a dataclass (or a mapping of dataclasses) into a locked `ConfigDict` with every field in it.

    Enums become their names; a field of type `X | None` that is None becomes a typed placeholder.
    """
    config = ConfigDict(_plain(value))
    config.lock()
    return config


def choose_preset(presets: Mapping[str, T], arg: str, file: str) -> T:
    """The entry of a config file's presets that `--config=FILE:ARG` names.

    Raises:
      UserError: there is none of that name.
    """
    if arg not in presets:
        known = ", ".join(f"'{name}'" for name in presets)
        raise UserError(f"{file} has no preset '{arg}'{closest(arg, presets)} (known: {known})")
    return presets[arg]


def from_config_dict(cls: type[T], mapping: Mapping[str, Any] | ConfigDict, path: str = "config") -> T:
    """Builds the frozen dataclass `cls` from a mapping.

    Args:
      cls: a dataclass; its fields may be dataclasses, enums, tuples, dicts by name, scalars, or any of these `| None`.
      mapping: `ConfigDict` or dict with the fields' values; fields with defaults may be absent.
      path: where the mapping stands, for messages.

    Raises:
      UserError: naming the key, for one that is unknown, missing, or holds a value of another type or a value that
        the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise UserError(f"unknown config key '{path}.{key}'{closest(key, fields)}")
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            near = closest(name, mapping)
            raise UserError(f"missing config key '{path}.{name}'{near}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def check_at_least(smallest: int, config: Any, *names: str) -> None:
    """Refuses sizes and counts that are too small; for the `__post_init__` of configs.

    Raises:
      ValueError: naming the first.
    """
    for name in names:
        if getattr(config, name) < smallest:
            raise ValueError(f"{name} must be at least {smallest}, not {getattr(config, name)}")


def check_share(config: Any, *names: str) -> None:
    """Refuses shares outside [0, 1), per cents say; for the `__post_init__` of configs.

    Raises:
      ValueError: naming the first.
    """
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), not {getattr(config, name)}")


def to_json(value: Any) -> str:
    """Canonical JSON of a config: keys sorted, so that equal configs give equal text."""
    return json.dumps(_plain(value), indent=2, sort_keys=True, default=_json_value)


def config_hash(value: Any) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a config's canonical JSON."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:12]


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, or that only one of two nested dicts has."""
    keys = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b or (key in old) != (key in new):
            keys.append(prefix + key)
    return keys


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes JSON so that a reader sees either the old file or the whole new one."""
    write_whole(path, (to_json(value) + "\n").encode())


def read_json(path: epath.PathLike) -> Any:
    """Reads JSON; a missing or broken file is a `UserError`."""
    path = as_path(path)
    try:
        return parse_json(decode_text(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing: is this a work directory of launch.train?") from None
    except ValueError as error:  # what is not UTF-8 too
        raise UserError(f"{path} is not valid JSON ({error})") from error


def parse_json(text: str, make_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Reads JSON from wherever it comes.

    Args:
      text: of it.
      make_object: from the pairs of an object, in their order; None: a dict, in which the last of equal keys counts.

    Raises:
      ValueError: it is none, or holds what Python refuses: a number of thousands of digits, lists in lists without end.
    """
    try:
        return json.loads(text, object_pairs_hook=make_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        plain = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            plain[field.name] = _placeholder(hints[field.name]) if item is None else _plain(item)
        return plain
    if isinstance(value, ConfigDict):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, config_dict.FieldReference):
        return _plain(value.get())
    return value


def _json_value(value: Any) -> Any:
    return value.get() if isinstance(value, config_dict.FieldReference) else str(value)


def _placeholder(hint: Any) -> Any:
    """A None that remembers which type may replace it (dataclasses and tuples have no flag of their own)."""
    (inner,) = [arg for arg in typing.get_args(hint) if arg is not type(None)] or [None]
    return config_dict.placeholder(inner) if inner in (int, float, str, bool) else None


def _convert(hint: Any, value: Any, path: str) -> Any:
    if isinstance(value, config_dict.FieldReference):
        value = value.get()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _convert(hint, value, path)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping | ConfigDict):
            raise UserError(f"config key '{path}' must hold a section, not {value!r}")
        return from_config_dict(hint, value, path)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"config key '{path}' must be a tuple, not {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise UserError(f"config key '{path}' must hold {len(args)} values, not {value!r}")
        return tuple(_convert(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"config key '{path}' must hold a section, not {value!r}")
        return {key: _convert(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            known = ", ".join(f"'{member.value}'" for member in hint)
            near = closest(str(value), [str(member.value) for member in hint])
            raise UserError(f"config key '{path}' is {value!r}{near} (known: {known})") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config key '{path}' must be a finite number, not {value}")
    if hint in (int, float, str, bool) and (type(value) is not hint):
        raise UserError(f"config key '{path}' must be {hint.__name__}, not {value!r}")
    return value
