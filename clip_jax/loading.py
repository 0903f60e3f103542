"""From a folder to a `Clip`."""

import functools

from etils import epath

from clip_jax.config import ClipStage
from clip_jax.handle import Clip
from clip_jax.model import abstract_params
from dalle_jax.config import from_config_dict
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoint import check_same, load_params
from dalle_jax.training.workdir import read_workdir


def load(path: epath.PathLike, *, step: int | None = None, batch_size: int = 64) -> Clip:
    """Loads the CLIP of a run, its average weights where it kept them.

    Args:
      path: a work directory of `launch.train`. Published weights (files, Hugging Face folders) cannot be read yet.
      step: of the checkpoint; None: the newest.
      batch_size: see `Clip`.

    Raises:
      UserError: the path is no work directory, has another format version, or holds no trained CLIP.
    """
    path = epath.Path(path)
    if path.is_file():
        raise UserError(f"{path} is a file; published weights cannot be read yet: give a work directory")
    run = read_workdir(path)
    if not run.get("clip"):
        raise UserError(f"{path} has no CLIP: train one with a config that has a `clip` section")
    config = from_config_dict(ClipStage, run["clip"], "config.clip").model
    tokenizer = Tokenizer(path / "tokenizer.model")
    if tokenizer.vocab_size > config.text.vocab_size:
        raise UserError(
            f"{path / 'tokenizer.model'} has {tokenizer.vocab_size} entries and the CLIP beside it knows "
            f"{config.text.vocab_size}: they are of different runs"
        )
    loaded = load_params(path / "clip", step=step)
    check_same(abstract_params(config), loaded.params, f"checkpoint {loaded.step} of {path / 'clip'}")
    tokenize = functools.partial(tokenizer.encode, length=config.text.context_length, end=True)
    return Clip(config, loaded.params, tokenize, batch_size=batch_size)
