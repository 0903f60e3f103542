"""Trains a text tokenizer on captions.

    python -m launch.tokenizer --data='data/*.tar' --vocab_size=16384 --out=tokenizer.model

`--data` is a pattern of webdataset tars, a folder of pictures with captions, a text file with a caption a line, the
name or directory of a TFDS data set, or `shapes`. A run trains a tokenizer of its own where its config names none; one
trained here can be shared by several, with `--config.tokenizer.path=tokenizer.model`.
"""

import sys
from collections.abc import Iterator

from absl import flags
from etils import epath

from dalle_jax.data.account import in_lines
from dalle_jax.data.captions import all_captions
from dalle_jax.data.config import DataConfig, SourceKind, TarKey
from dalle_jax.data.sources import TRAIN, open_splits
from dalle_jax.data.tokenizer import train_tokenizer
from launch.data_path import guess_source
from launch.flags import start

DATA = flags.DEFINE_string("data", None, "tars, folder, text file, TFDS name or directory, or 'shapes'", required=True)
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
    if not data.endswith(".tar") and epath.Path(data).is_file():
        with epath.Path(data).open("rb") as file:
            yield from (line.decode("utf-8", "ignore").strip() for line in file)
        return
    source = guess_source(data)
    config = DataConfig(
        source=source,
        path=data,
        split=SPLIT.value,
        eval_fraction=0.0,  # the data are wholly for training here; name a held-out split's data apart
        caption_field=CAPTION_FIELD.value,
        key=KEY.value if source is SourceKind.WEBDATASET else TarKey.FIRST_DOT,
    )
    sources = open_splits(config)
    print(in_lines(config, sources), file=sys.stderr)
    yield from all_captions(sources[TRAIN])


def main() -> None:
    tokenizer = train_tokenizer(texts(DATA.value), VOCAB_SIZE.value, OUT.value)
    print(f"{OUT.value}: {tokenizer.vocab_size} pieces, fingerprint {tokenizer.fingerprint}", file=sys.stderr)


if __name__ == "__main__":
    start(main, alone=True)
