"""Options of a data set that would have no effect: whoever sets one means something by it."""

import dataclasses
from collections.abc import Collection

from dalle_jax.data.config import DataConfig, SourceConfig
from dalle_jax.data.source_types import SOURCES, source_type
from dalle_jax.errors import UserError


def check_options(config: SourceConfig, chosen: Collection[str] | None = None) -> None:
    """Refuses options that the data have no use for, where they are set to another value than the default.

    It is for what begins: a run that was begun with such an option goes on as it did, without effect.

    Args:
      config: of the data.
      chosen: options that were set for these data; the others, which a config holds for other data, are left in peace.
        None: all.

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
    for name in kind.unused:
        if _is_set(config, name) and (chosen is None or name in chosen):
            others = ", ".join(other for other in SOURCES if name not in SOURCES[other].unused)
            _refuse(name, config, f"config.data.source is '{config.source}', and it is for others ({others})")
    if _is_set(config, "split") and not kind.named_splits and "{split}" not in config.path:
        _refuse("split", config, "{split} does not stand in config.data.path, where the split's name would go")


def _is_set(config: SourceConfig, name: str) -> bool:
    return getattr(config, name) != getattr(SourceConfig, name)


def _refuse(name: str, config: SourceConfig, why: str) -> None:
    raise UserError(
        f"config.data.{name}={getattr(config, name)!r} has no effect: {why}; mend that, or leave config.data.{name} out"
    )
