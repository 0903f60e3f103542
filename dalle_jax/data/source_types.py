"""The kinds of data that a config can name: how each is opened, and which options and splits it has."""

import dataclasses
from collections.abc import Callable

from dalle_jax import storage
from dalle_jax.data import paths
from dalle_jax.data.config import SourceConfig, SourceKind
from dalle_jax.data.records import Source
from dalle_jax.errors import UserError, closest

TRAIN, EVAL = "train", "eval"
"""What a run trains on and what it holds out, whatever names the data have for them."""


@dataclasses.dataclass(frozen=True)
class SourceType:
    """A kind of data. One is added by an entry in `SOURCES`."""

    open: Callable[[SourceConfig, str], Source]
    """Opens a split, by the name that the data have for it, as it is stored.

    Raises `UserError` where the data are missing, damaged or empty, or have no such split."""
    unused: tuple[str, ...] = ()
    """Options of `SourceConfig` that it has no use for, and that are refused where a person sets one."""
    unused_if_given: tuple[str, ...] = ()
    """The same, of options that may stand in the file of a config and are refused on the command line alone: what said
    how the images of encoded data were read and held out."""
    named_splits: bool = False
    """Whether the data have splits of their own; others have them where `{split}` stands in their path."""
    may_be_divided: bool = False
    """Whether what is opened may name splits (`Source.held_out`), where `{split}` does not stand in the path."""
    splits: Callable[[SourceConfig], list[str]] | None = None
    """Which of `train` and `eval` there are, where the data themselves say what is held out; None: the config says."""


def source_type(name: str) -> SourceType:
    """The kind of data of that name.

    Raises:
      UserError: there is none; it names the nearest.
    """
    if name not in SOURCES:
        raise UserError(
            f"unknown kind of data, config.data.source='{name}'{closest(name, SOURCES)} (known: {', '.join(SOURCES)})"
        )
    return SOURCES[name]


def stored_path(config: SourceConfig, split: str) -> str:
    """The path of a split, for data whose splits lie where `{split}` stands in their path.

    Raises:
      UserError: it stands nowhere, and another split than that of the config is asked for.
    """
    if split != config.split and "{split}" not in config.path:
        raise UserError(
            f"config.data.path='{config.path}' has no split '{split}': write {{split}} in the path where "
            "the split's name stands"
        )
    return config.path.replace("{split}", split)


# What reads a kind of data is imported when the first of that kind is opened: some of it takes seconds.


def _open_shapes(config: SourceConfig, split: str) -> Source:
    from dalle_jax.data import shapes

    return shapes.source(config.shapes, split)


def _open_webdataset(config: SourceConfig, split: str) -> Source:
    from dalle_jax.data.readers.webdataset import WebDataset

    return WebDataset(
        paths.expand(stored_path(config, split), ".tar"),
        caption_field=config.caption_field,
        key=config.key,
        held_out_by=config.held_out_by,
    )


def _open_folder(config: SourceConfig, split: str) -> Source:
    from dalle_jax.data.readers.class_folder import ClassFolder
    from dalle_jax.data.readers.folder import Folder
    from dalle_jax.data.readers.own_splits import Wanted

    kind = ClassFolder if config.caption_templates else Folder
    fields = {"caption_field": config.caption_field, "image_field": config.image_field}
    if "{split}" in config.path:
        return kind(stored_path(config, split), **fields)
    held_out = config.eval_split or ("" if config.eval_fraction else None)
    return kind(config.path, **fields, wanted=Wanted(split, held_out if split == config.split else None))


def _open_parquet(config: SourceConfig, split: str) -> Source:
    from dalle_jax.data.readers.parquet import Parquet

    return Parquet(
        paths.expand(stored_path(config, split), ".parquet"),
        caption_field=config.caption_field,
        image_field=config.image_field,
        label_field=config.label_field,
    )


def _open_tfds(config: SourceConfig, split: str) -> Source:
    from dalle_jax.data.readers import tfds

    return tfds.Tfds(
        tfds.open_builder(config.path),
        split,
        caption_field=config.caption_field,
        image_field=config.image_field,
        label_field=config.label_field,
    )


def _open_encoded(config: SourceConfig, split: str) -> Source:
    from dalle_jax.data.encoded.source import Encoded

    return Encoded(config.path, split)


def _splits_of_encoded(config: SourceConfig) -> list[str]:
    from dalle_jax.data.encoded.source import read_manifest

    return [TRAIN, EVAL] if EVAL in read_manifest(storage.expanduser(config.path)).splits else [TRAIN]


_FIELDS = ("caption_field", "image_field", "label_field", "caption_templates")
_OF_TARS = ("key", "held_out_by")

SOURCES: dict[str, SourceType] = {
    SourceKind.SHAPES.value: SourceType(
        _open_shapes,
        unused=("path", *_FIELDS, *_OF_TARS, "eval_fraction"),
        named_splits=True,
        splits=lambda config: [TRAIN, EVAL],
    ),
    SourceKind.WEBDATASET.value: SourceType(
        _open_webdataset, unused=("image_field", "label_field", "caption_templates")
    ),
    SourceKind.FOLDER.value: SourceType(_open_folder, unused=("label_field", *_OF_TARS), may_be_divided=True),
    SourceKind.PARQUET.value: SourceType(_open_parquet, unused=_OF_TARS),
    SourceKind.TFDS.value: SourceType(_open_tfds, unused=_OF_TARS, named_splits=True),
    SourceKind.ENCODED.value: SourceType(
        _open_encoded,
        unused_if_given=(*_FIELDS, *_OF_TARS, "eval_fraction"),
        named_splits=True,
        splits=_splits_of_encoded,
    ),
}
"""By the name that a config has; another one is added here, or from outside before data of that kind are opened."""
