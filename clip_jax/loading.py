"""From a path to a `Clip`: a run of ours, or published weights."""

import os
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from clip_jax.clip import Clip, Tokenize
from clip_jax.config import ClipStage, ReadAt
from clip_jax.model import abstract_variables
from clip_jax.tokenizers.published import FILES as TOKENIZER_FILES
from clip_jax.tokenizers.published import CaptionTokenizer, load_tokenizer
from clip_jax.tokenizers.run_tokenizer import TRAINED, read_tokenizer
from clip_jax.weights.folders import refuse_other_folders
from clip_jax.weights.one_tower import OneTower, Side, refuse_side
from clip_jax.weights.opening import Published, is_published, open_published
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.run_record import read_run
from dalle_jax.storage import as_path, path_text
from dalle_jax.training.checkpoints.orbax_io import check_same
from dalle_jax.training.checkpoints.reader import load_params
from dalle_jax.training.trees import unbox
from dalle_jax.weights import local_path


def load(
    path: epath.PathLike,
    *,
    step: int | None = None,
    batch_size: int = 64,
    activation: str | Activation | None = None,
    key: str | None = None,
    prefix: str | None = None,
    param_dtype: str | None = "float32",
    tokenize: Tokenize | None = None,
    truncate: bool = False,
) -> Clip:
    """Loads the CLIP of a run, its average weights where it kept them, or published weights.

    Args:
      path: a work directory of `launch.train`; a file of weights of OpenAI's CLIP or open_clip's (`.pt`, TorchScript
        or not, `.bin`, `.safetensors`), or of big_vision's SigLIP (`.npz`); a folder of Hugging Face's (CLIP, SigLIP,
        or a tower of theirs) or open_clip's. No code of a file is run, and nothing is downloaded.
      step: of a run's checkpoint; None: the newest.
      batch_size: see `Clip`.
      activation: of a bare file, which cannot tell: `quick_gelu` (the default, and OpenAI's), or `gelu` (of open_clip's
        names without `-quickgelu`).
      key: of a checkpoint that holds several state dicts, which is read: `state_dict_ema`, or `ema.model`.
      prefix: what the names of the model's tensors begin with, where the file holds others too: `clip.`.
      param_dtype: of published parameters, `float32`, `bfloat16` or `float16`; None: as they are in the file, half
        precision included.
      tokenize: captions to ids; None: the tokenizer beside the weights, or OpenAI's where there is none.
      truncate: cut captions that are longer than the model reads, instead of refusing them.

    Raises:
      UserError: there is no CLIP at the path, it is damaged, has another format version, or its weights are made by a
        call that is not run; or parameters are missing, unknown, or of a wrong shape, and the message names them; or
        there is no such key or prefix, and the message names those that are there.

    Returns:
      The model; a `OneTower` where a folder holds the text tower or the image tower alone.
    """
    path = _here(path)
    if tokenize is not None and truncate:
        raise UserError("truncate is for the tokenizer beside the weights: one given by tokenize= cuts by itself")
    if is_published(path):
        if step is not None:
            raise UserError(f"{path} holds published weights, not checkpoints of a run: leave step={step} out")
        published = open_published(path, activation=activation, key=key, prefix=prefix, whole=False)
        home = SingleDeviceSharding(jax.local_devices()[0])
        state = published.read(dtype=param_dtype, shardings=home)
        params, tokenize = state.pop("params"), tokenize or _tokenize(published, truncate)
        options = {"batch_size": batch_size, "model_state": state}
        if published.side is not None:
            return OneTower(published.path, published.side, published.config, params, tokenize, **options)
        return Clip(published.config, params, tokenize, **options)
    refuse_other_folders(os.fspath(path))
    for name, value in (("key", key), ("prefix", prefix)):
        if value is not None:
            raise UserError(f"{path} is a work directory, not a file of weights: leave {name}={value} out")
    if activation is not None:
        raise UserError(f"{path} is a work directory, which knows its activation: leave activation={activation} out")
    return _load_run(path, step, batch_size, tokenize, truncate)


_OPENAI_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
"""OpenAI's names of models that are not paths here, with those on Hugging Face's hub."""


def _here(path: epath.PathLike) -> epath.Path:
    """A path that exists, or is in a bucket, where runs may be.

    Raises:
      UserError: it is neither.
    """
    text = path_text(path)
    if text.startswith("gs://"):
        return as_path(path)
    return epath.Path(local_path(text, _OPENAI_NAMES.get(text)))


def _load_run(path: epath.Path, step: int | None, batch_size: int, tokenize: Tokenize | None, truncate: bool) -> Clip:
    config = read_run(path).stage("clip", ClipStage).model
    if tokenize is None:
        tokenize = read_tokenizer(path, context_length=config.text.context_length, truncate=truncate)
        if tokenize.vocab_size > config.text.vocab_size:
            raise UserError(
                f"the tokenizer in {path} has {tokenize.vocab_size} entries and the CLIP beside it knows "
                f"{config.text.vocab_size}: they are of different runs"
            )
    loaded = load_params(path / "clip", step=step)
    found = {"params": loaded.params, **loaded.model_state}
    check_same(unbox(abstract_variables(config)), found, f"checkpoint {loaded.step} of {path / 'clip'}")
    return Clip(config, loaded.params, tokenize, batch_size=batch_size, model_state=loaded.model_state)


def published_tokenizer(published: Published, truncate: bool = False) -> CaptionTokenizer | None:
    """The tokenizer that a folder brings, or OpenAI's; None where it does not fit the model."""
    text, folder = published.config.text, published.folder
    options = {"context_length": text.context_length, "truncate": truncate}
    if folder is not None and (epath.Path(folder) / TRAINED).is_file():
        tokenizer = read_tokenizer(folder, **options)
    else:
        brings = folder is not None and any((epath.Path(folder) / name).is_file() for name in TOKENIZER_FILES)
        tokenizer = load_tokenizer(folder if brings else None, cleaning=published.cleaning, **options)
    ends_alike = text.read_at is ReadAt.HIGHEST or tokenizer.end_id == text.end_id
    fits = tokenizer.vocab_size <= text.vocab_size and ends_alike
    return tokenizer if fits else None


def _tokenize(published: Published, truncate: bool) -> Tokenize:
    """One that does not fit is an error when text comes, and an image tower has no use for any."""
    if published.side is Side.IMAGE:
        return lambda texts: refuse_side(published.path, Side.IMAGE)
    tokenizer, text = published_tokenizer(published, truncate), published.config.text
    if tokenizer is not None:
        return tokenizer

    def refuse(texts: Sequence[str]) -> np.ndarray:
        raise UserError(
            f"{published.path} has a vocabulary of {text.vocab_size} that ends captions with "
            f"{text.end_id}, and no tokenizer for it: give one to clip_jax.load(..., tokenize=...)"
        )

    return refuse
