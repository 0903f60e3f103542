"""From a path to a `Clip`: a run of ours, or published weights."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from clip_jax.config import ClipConfig, ClipStage
from clip_jax.handle import Clip, Tokenize
from clip_jax.model import abstract_params
from clip_jax.tokenizers import FILES as TOKENIZER_FILES
from clip_jax.tokenizers import load_tokenizer
from clip_jax.weights import Published, is_published, open_published
from dalle_jax.config import from_config_dict
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.errors import UserError
from dalle_jax.nn.transformer import Activation
from dalle_jax.training.checkpoint import check_same, load_params
from dalle_jax.training.workdir import read_workdir

TOKENIZER = "tokenizer.model"
"""The file of a tokenizer trained here, in a run and beside weights that were saved from one."""


def load(
    path: epath.PathLike,
    *,
    step: int | None = None,
    batch_size: int = 64,
    activation: str | Activation | None = None,
    param_dtype: str | None = "float32",
    tokenize: Tokenize | None = None,
    truncate: bool = False,
) -> Clip:
    """Loads the CLIP of a run, its average weights where it kept them, or published weights.

    Args:
      path: a work directory of `launch.train`; a file of weights of OpenAI's CLIP or open_clip's (`.pt`, TorchScript
        or not, `.bin`, `.safetensors`); a folder of Hugging Face's (CLIP, SigLIP) or open_clip's. No code of a file is
        run.
      step: of a run's checkpoint; None: the newest.
      batch_size: see `Clip`.
      activation: of a bare file, which cannot tell: `quick_gelu` (the default, and OpenAI's), or `gelu` (of open_clip's
        names without `-quickgelu`).
      param_dtype: of published parameters; None: as they are in the file, half precision included.
      tokenize: captions to ids; None: the tokenizer beside the weights, or OpenAI's where there is none.
      truncate: whether a published tokenizer cuts captions that are too long, instead of refusing them. (SigLIP was
        trained on cut ones; a tokenizer trained here always cuts.)

    Raises:
      UserError: there is no CLIP at the path, it is damaged, has another format version, or asks for a call that
        weights do not need; or parameters are missing, unknown, or of a wrong shape, and the message names them.
    """
    if is_published(path):
        published = open_published(path, activation=activation)
        home = SingleDeviceSharding(jax.local_devices()[0])
        params = published.read(dtype=param_dtype, shardings=home)["params"]
        return Clip(published.config, params, tokenize or _tokenize(published, truncate), batch_size=batch_size)
    if activation is not None:
        raise UserError(f"{path} is a work directory, which knows its activation: leave activation={activation} out")
    return _load_run(epath.Path(path), step, batch_size)


def _load_run(path: epath.Path, step: int | None, batch_size: int) -> Clip:
    run = read_workdir(path)
    if not run.get("clip"):
        raise UserError(f"{path} has no CLIP: train one with a config that has a `clip` section")
    config = from_config_dict(ClipStage, run["clip"], "config.clip").model
    tokenize = _own_tokenize(path / TOKENIZER, config)
    loaded = load_params(path / "clip", step=step)
    check_same(abstract_params(config), loaded.params, f"checkpoint {loaded.step} of {path / 'clip'}")
    return Clip(config, loaded.params, tokenize, batch_size=batch_size)


def _own_tokenize(path: epath.Path, config: ClipConfig) -> Tokenize:
    """Of a tokenizer trained here."""
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} entries and the CLIP beside it knows {config.text.vocab_size}: they "
            "are of different runs"
        )
    return functools.partial(tokenizer.encode, length=config.text.context_length, end=True)


def _tokenize(published: Published, truncate: bool) -> Tokenize:
    """The tokenizer that a folder brings, or OpenAI's; one that does not fit is an error when text comes."""
    config, folder = published.config, published.folder
    if folder is not None and (epath.Path(folder) / TOKENIZER).is_file():
        return _own_tokenize(epath.Path(folder) / TOKENIZER, config)
    brings = folder is not None and any((epath.Path(folder) / name).is_file() for name in TOKENIZER_FILES)
    length = config.text.context_length
    tokenizer = load_tokenizer(folder if brings else None, context_length=length, truncate=truncate)
    if tokenizer.vocab_size <= config.text.vocab_size and tokenizer.end_id == config.text.end_id:
        return tokenizer

    def refuse(texts: Sequence[str]) -> np.ndarray:
        raise UserError(
            f"{published.path} has a vocabulary of {config.text.vocab_size} that ends captions with "
            f"{config.text.end_id}, and no tokenizer for it: give one to clip_jax.load(..., tokenize=...)"
        )

    return refuse
