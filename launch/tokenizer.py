"""Trains a text tokenizer on captions.

    python -m launch.tokenizer --data='data/*.tar' --vocab_size=16384 --out=tokenizer.model

`--data` is a pattern of webdataset tars or Parquet files, a folder of images with captions or a table in it, a text
file with a caption a line, the name or directory of a TFDS data set, or `shapes`. A run trains a tokenizer of its own
where its config names none; one trained here can be shared by several, with
`--config.tokenizer.path=tokenizer.model`.
"""

import sys

from absl import flags

from dalle_jax.data.config import TarKey
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.storage import as_path
from launch.cli import start
from launch.run.caption_texts import texts

DATA = flags.DEFINE_string("data", None, "tars, folder, table, text file, TFDS name, or 'shapes'", required=True)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 16_384, "entries, special ones and characters included")
OUT = flags.DEFINE_string("out", None, "where to write the model", required=True)
KEY = flags.DEFINE_enum_class("key", TarKey.FIRST_DOT, TarKey, "of tars: up to which dot a name is a sample's key")
CAPTION_FIELD = flags.DEFINE_string("caption_field", "", "of .json members, tables and TFDS; default: the usual names")
SPLIT = flags.DEFINE_string("split", "train", "of a TFDS data set, or what {split} in --data stands for")


def main() -> None:
    """Reads captions, trains the tokenizer and writes it."""
    out = as_path(OUT.value)
    captions = texts(DATA.value, split=SPLIT.value, caption_field=CAPTION_FIELD.value, key=KEY.value)
    tokenizer = train_tokenizer(captions, VOCAB_SIZE.value, out)
    print(f"{OUT.value}: {tokenizer.vocab_size} pieces, fingerprint {tokenizer.fingerprint}", file=sys.stderr)


if __name__ == "__main__":
    start(main, alone=True)
