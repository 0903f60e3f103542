"""Trains a text tokenizer on captions.

    python -m launch.tokenizer --data='data/*.tar' --vocab_size=16384 --out=tokenizer.model

`--data` is a pattern of webdataset tars or Parquet files, a folder of pictures with captions or a table in it, a text
file with a caption a line, the name or directory of a TFDS data set, or `shapes`. A run trains a tokenizer of its own
where its config names none; one trained here can be shared by several, with
`--config.tokenizer.path=tokenizer.model`.
"""

import sys
from collections.abc import Iterator

from absl import flags

from dalle_jax.data.account import in_lines
from dalle_jax.data.captions import all_captions
from dalle_jax.data.config import DataConfig, SourceKind, TarKey
from dalle_jax.data.options import check_options
from dalle_jax.data.sources import TRAIN, open_splits
from dalle_jax.data.tables import is_table_name, names_images, read_text
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path
from launch.data_path import guess_source
from launch.flags import start

DATA = flags.DEFINE_string("data", None, "tars, folder, table, text file, TFDS name, or 'shapes'", required=True)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 16_384, "entries, special ones and characters included")
OUT = flags.DEFINE_string("out", None, "where to write the model", required=True)
KEY = flags.DEFINE_enum_class("key", TarKey.FIRST_DOT, TarKey, "of tars: up to which dot a name is a sample's key")
CAPTION_FIELD = flags.DEFINE_string("caption_field", "", "of .json members, tables and TFDS; default: the usual names")
SPLIT = flags.DEFINE_string("split", "train", "of a TFDS data set, or what {split} in --data stands for")


def texts(data: str) -> Iterator[str]:
    """The captions that `--data` names.

    Raises:
      UserError: where there are none to be read.
    """
    if _is_text(data):
        yield from lines(data)
        return
    source = guess_source(data)
    config = DataConfig(
        source=source,
        path="" if source is SourceKind.SHAPES else data,
        split=SPLIT.value,
        eval_fraction=0.0,  # the data are wholly for training here; name a held-out split's data apart
        caption_field=CAPTION_FIELD.value,
        key=KEY.value if source is SourceKind.WEBDATASET else TarKey.FIRST_DOT,
    )
    check_options(config)
    sources = open_splits(config)
    print(in_lines(config, sources), file=sys.stderr)
    yield from all_captions(sources[TRAIN])


def _is_text(data: str) -> bool:
    """Whether a path names a file that is neither tars nor a table."""
    low = data.lower()
    if low.endswith(".tar") or not as_path(data).is_file():
        return False
    return not names_images(data) if low.endswith(".txt") else not is_table_name(data)


def lines(path: str) -> list[str]:
    """The lines of a text file, a caption each, without those that are blank.

    Raises:
      UserError: it is no text in UTF-8.
    """
    text = read_text(path)
    found = [line.strip() for line in text.split("\n")]
    for number, line in enumerate(found, 1):
        try:
            line.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"--data={path}: line {number} is not UTF-8, so this is no text, or one in another encoding: write it "
                "as UTF-8 (iconv -f LATIN1 -t UTF-8), or name a text file, a table, a folder or tars"
            ) from None
    return [line for line in found if line]


def main() -> None:
    out = as_path(OUT.value)
    tokenizer = train_tokenizer(texts(DATA.value), VOCAB_SIZE.value, out)
    print(f"{OUT.value}: {tokenizer.vocab_size} pieces, fingerprint {tokenizer.fingerprint}", file=sys.stderr)


if __name__ == "__main__":
    start(main, alone=True)
