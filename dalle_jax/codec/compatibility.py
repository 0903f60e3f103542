"""A decoder and the codec that it learned from belong together: with another codec its tokens mean other images.

The folder of the decoder's stage says which codec that was, since the folder of the codec may have gone on meanwhile.
"""

from etils import epath

from dalle_jax.codec.frozen import FrozenCodec
from dalle_jax.config import read_json, write_json
from dalle_jax.errors import UserError

_FILE = "codec.json"


def pin_codec(codec: FrozenCodec, stage_dir: epath.PathLike) -> None:
    """Notes, at a decoder's first start, what it learns from; one process calls it."""
    path = epath.Path(stage_dir) / _FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"fingerprint": codec.fingerprint})


def check_pinned(codec: FrozenCodec, stage_dir: epath.PathLike, where: epath.PathLike) -> None:
    """Whether a decoder can go on, or sample, with a codec; runs of old, which noted none, take any.

    Raises:
      UserError: it has learned from another one than that of `where`.
    """
    path = epath.Path(stage_dir) / _FILE
    if path.exists() and read_json(path)["fingerprint"] != codec.fingerprint:
        raise UserError(
            f"the codec of {where} is not the one that the decoder in {stage_dir} learned from: it was trained further "
            "or put there anew. Bring back its checkpoint of that time, or train a decoder in another work directory"
        )
