"""Options of a data set that would have no effect: whoever sets one means something by it."""

import dataclasses
from collections.abc import Collection

from dalle_jax.data.config import DataConfig, SourceConfig, SourceKind
from dalle_jax.errors import UserError

IDLE = {
    SourceKind.SHAPES: ("path", "caption_field", "image_field", "label_field", "caption_templates"),
    SourceKind.WEBDATASET: ("image_field", "label_field", "caption_templates"),
    SourceKind.FOLDER: ("label_field",),
}
"""Options that a kind of data has no use for. Those that are not here may stand in the file of a config whose data the
command line replaces: `shapes`, `eval_fraction`, and all that said how the pictures of encoded data were read."""

SPLITS_BY_NAME = (SourceKind.SHAPES, SourceKind.ENCODED, SourceKind.TFDS)
"""Kinds of data that have splits of their own; others have them where `{split}` stands in their path."""


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
    for name in IDLE.get(config.source, ()):
        if _is_set(config, name) and (chosen is None or name in chosen):
            others = ", ".join(kind.value for kind in SourceKind if name not in IDLE.get(kind, ()))
            _refuse(name, config, f"config.data.source is '{config.source.value}', and it is for others ({others})")
    if _is_set(config, "split") and config.source not in SPLITS_BY_NAME and "{split}" not in config.path:
        _refuse("split", config, "{split} does not stand in config.data.path, where the split's name would go")


def _is_set(config: SourceConfig, name: str) -> bool:
    return getattr(config, name) != getattr(SourceConfig, name)


def _refuse(name: str, config: SourceConfig, why: str) -> None:
    raise UserError(
        f"config.data.{name}={getattr(config, name)!r} has no effect: {why}; mend that, or leave config.data.{name} out"
    )
