"""Captions to train a tokenizer on, from whatever holds some."""

import dataclasses
import re
import sys
from collections.abc import Iterator

from dalle_jax.data.account import in_lines
from dalle_jax.data.captions import all_captions
from dalle_jax.data.config import DataConfig, SourceKind, TarKey
from dalle_jax.data.options import check_opened, check_options
from dalle_jax.data.readers.tables import is_table_name, names_images, read_text
from dalle_jax.data.sources import TRAIN, open_splits
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path
from dalle_jax.text_files import split_lines
from launch.run.source_kind import guess_source


def texts(data: str, *, split: str = TRAIN, caption_field: str = "", key: TarKey = TarKey.FIRST_DOT) -> Iterator[str]:
    """The captions that a path names, as `--data` of `launch.tokenizer` does. Says on stderr what a data set holds.

    Args:
      data: tars, Parquet files, a folder, a table, a text file with a caption a line, a TFDS data set or `shapes`.
      split: of a TFDS data set, or what `{split}` in the path stands for.
      caption_field: of `.json` members, tables and TFDS; empty: the usual names.
      key: of tars.

    Raises:
      UserError: where there are none to be read.
    """
    source = None if _is_text(data) else guess_source(data)
    if key is not TarKey.FIRST_DOT and source is not SourceKind.WEBDATASET:
        raise _without_effect("key", key.value, f"it is for tars, and {data} is none")
    if source is None:
        for option, value, usual in (("split", split, TRAIN), ("caption_field", caption_field, "")):
            if value != usual:
                raise _without_effect(option, value, f"{data} is a text with a caption a line")
        yield from lines(data)
        return
    config = DataConfig(
        source=source,
        path="" if source is SourceKind.SHAPES else data,
        split=split,
        caption_field=caption_field,
        key=key,
    )
    try:
        check_options(config)
        # The data are wholly for training here; name a held-out split's data apart.
        config = dataclasses.replace(config, eval_fraction=0.0)
        sources = open_splits(config)
        check_opened(config, sources)
    except UserError as error:
        raise UserError(_by_flags(str(error))) from error
    print(in_lines(config, sources), file=sys.stderr)
    yield from all_captions(sources[TRAIN])


def _without_effect(option: str, value: str, why: str) -> UserError:
    return UserError(f"--{option}={value} has no effect: {why}; leave it out")


def _by_flags(message: str) -> str:
    """A message about a config's options in those of `launch.tokenizer`."""
    message = re.sub(r"config\.data\.(split|caption_field|key)\b", r"--\1", message)
    return message.replace("config.data.path", "--data")


def _is_text(data: str) -> bool:
    """Whether a path names a file that is neither tars nor a table."""
    low = data.lower()
    if low.endswith(".tar") or not as_path(data).is_file():
        return False
    return not names_images(data) if low.endswith(".txt") else not is_table_name(data)


def lines(path: str) -> list[str]:
    """The lines of a text file, a caption each, without those that are blank.

    Raises:
      UserError: it is not text in UTF-8.
    """
    text = read_text(path)
    found = [line.strip() for line in split_lines(text)]
    for number, line in enumerate(found, 1):
        try:
            line.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"--data={path}: line {number} is not UTF-8, so this is not text, or one in another encoding: write it "
                "as UTF-8 (iconv -f LATIN1 -t UTF-8), or name a text file, a table, a folder or tars"
            ) from None
    return [line for line in found if line]
