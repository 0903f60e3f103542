"""Options of a data set that would have no effect: whoever sets one means something by it."""

import dataclasses
import enum
from collections.abc import Collection, Mapping

from dalle_jax.data.config import DataConfig, SourceConfig
from dalle_jax.data.mixture import parts_of
from dalle_jax.data.records import Source, whole_of
from dalle_jax.data.source_types import SOURCES, source_type
from dalle_jax.errors import UserError


def check_options(config: SourceConfig, given: Collection[str] = ()) -> None:
    """Refuses options that the data have no use for, where they are set to another value than the default.

    It is for what begins: a run that was begun with such an option goes on as it did, without effect.

    Args:
      config: of the data.
      given: options that a person has set on the command line. Where `source` is among them, the others are what the
        config holds for other data, and are left in peace.

    Raises:
      UserError: naming the option and what to do.
    """
    if isinstance(config, DataConfig) and config.mixture:
        for field in dataclasses.fields(SourceConfig):
            if _is_set(config, field.name):
                _refuse(field.name, config, "config.data.mixture is set, whose parts have these options of their own")
        for part in config.mixture:
            check_options(part)
        return
    kind = source_type(config.source)
    for name in (*kind.unused, *kind.unused_if_given):
        if _is_set(config, name) and (name in given or not ("source" in given or name in kind.unused_if_given)):
            others = ", ".join(other for other, its in SOURCES.items() if name not in its.unused + its.unused_if_given)
            _refuse(name, config, f"config.data.source is '{config.source}', and it is for others ({others})")
    named = kind.named_splits or kind.may_be_divided  # which of these are there is known when they are opened
    if _is_set(config, "split") and not named and "{split}" not in config.path:
        _refuse("split", config, "{split} does not stand in config.data.path, where the split's name would go")
    _check_share(config, given)


def check_opened(config: SourceConfig, sources: Mapping[str, Source], given: Collection[str] = ()) -> None:
    """Refuses options that what was opened turns out to have no use for; see `check_options`.

    Args:
      config: of the data.
      sources: what `open_splits` opened for it.
      given: options that a person has set on the command line.

    Raises:
      UserError: naming the option and what to do.
    """
    mixture = config.mixture if isinstance(config, DataConfig) else ()
    parts = {part.name: part for part in mixture}
    for source in sources.values():
        for name, part in zip(source.part_names or ("",), parts_of(source), strict=True):
            own = parts.get(name, config)
            for option, why in whole_of(part).without_effect.items():
                if _is_set(own, option) and (option in given or "source" not in given or own is not config):
                    _refuse(option, own, why)


def _check_share(config: SourceConfig, given: Collection[str]) -> None:
    """Refuses what says which share is held out, where a split is or nothing is."""
    if config.eval_split:
        decides, why = "eval_split", f"config.data.eval_split='{config.eval_split}' says what is held out"
        names = ("eval_fraction", "held_out_by") if config.eval_fraction else ("held_out_by",)  # a share of 0 is none
    elif not config.eval_fraction:
        decides, why, names = "eval_fraction", "config.data.eval_fraction=0 holds nothing out", ("held_out_by",)
    else:
        return
    for name in names:
        # The file of a config may hold it beside what the command line changes.
        if _is_set(config, name) and (name in given or not {decides, "source"} & set(given)):
            _refuse(name, config, why)


def _is_set(config: SourceConfig, name: str) -> bool:
    return getattr(config, name) != getattr(SourceConfig, name)


def _refuse(name: str, config: SourceConfig, why: str) -> None:
    value = getattr(config, name)
    value = value.value if isinstance(value, enum.Enum) else value
    raise UserError(f"config.data.{name}={value!r} has no effect: {why}; mend that, or leave config.data.{name} out")
