"""The scenes as a `Source`: prepared on first use, read by index."""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from dalle_jax import storage
from dalle_jax.data.config import ShapesConfig
from dalle_jax.data.records import Record, Source
from dalle_jax.data.shapes.builder import SPLITS, Shapes
from dalle_jax.errors import UserError, closest

_log = logging.getLogger(__name__)


def open_split(config: ShapesConfig, split: str) -> Source:
    """Prepares the data set where it is not yet, and opens one of its splits."""
    if split not in SPLITS:
        raise UserError(f"the shapes have no split '{split}'{closest(split, SPLITS)} (splits: {', '.join(SPLITS)})")
    if config.image_size < 64:
        raise UserError(f"config key 'shapes.image_size' must be 64 or more, to be legible, not {config.image_size}")
    if config.max_objects not in (1, 2):
        raise UserError(f"config key 'shapes.max_objects' must be 1 or 2, not {config.max_objects}")
    for name in ("num_train", "num_eval"):
        if getattr(config, name) < 1:
            raise UserError(f"config key 'shapes.{name}' must be at least 1, not {getattr(config, name)}")
    return ShapesSource(_prepare(config), split)


class ShapesSource(Source):
    """Records of a prepared folder."""

    def __init__(self, folder: Path, split: str):
        self.name = f"shapes/{split}"
        self._folder = folder
        self._split = split
        self._open()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        example = self._examples[index]
        texts = tuple(text.decode() for text in example["captions"])
        return Record(image=example["image"], captions=texts, key=self.key(index))

    def key(self, index: int) -> str:
        return f"{self._split}/{index:08d}"

    def captioned(self) -> int | None:
        return len(self)

    def __getstate__(self) -> dict:
        return {"name": self.name, "_folder": self._folder, "_split": self._split}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()  # file handles do not travel between processes

    def _open(self) -> None:
        builder: Any = tfds.builder_from_directory(self._folder)
        self._examples: Sequence[Any] = builder.as_data_source(
            self._split, decoders={"image": tfds.decode.SkipDecoding()}
        )


def _prepare(config: ShapesConfig) -> Path:
    """The folder of the prepared data set; TFDS writes beside it and renames, so it is whole or absent."""
    data_dir = storage.expanduser(config.data_dir or "~/.cache/dalle-jax/data")
    try:
        with _quiet_tfds():
            builder = Shapes(config, data_dir)
            folder = Path(str(builder.data_dir))
            if not folder.is_dir():
                num_scenes = config.num_train + (len(SPLITS) - 1) * config.num_eval
                _log.info(f"drawing {num_scenes:,} scenes into {folder} (once)")
                _prepare_once(builder, folder)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(
            f"cannot write the shapes to '{data_dir}' ({error.strerror}); set data.shapes.data_dir"
        ) from error
    return folder


def _prepare_once(builder: tfds.core.DatasetBuilder, folder: Path) -> None:
    try:
        builder.download_and_prepare()
    except OSError:
        # Another process of this run may have been first.
        if not folder.is_dir():
            raise


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """TFDS reports on downloads and shuffling, of which there are none, in a dozen lines and two kinds of bars."""
    theirs = logging.getLogger("absl")
    level = theirs.level
    theirs.setLevel(logging.ERROR)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)
        theirs.setLevel(level)
