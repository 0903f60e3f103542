"""Out of here: a `Clip` as a folder that transformers or open_clip load, and `clip_jax.load` too."""

import functools
import logging
from typing import Any

import jax
from etils import epath

from clip_jax.clip import Clip
from clip_jax.config import ClipConfig, Loss, TextTower, VisionConfig, VisionTower
from clip_jax.preprocessing.hf import CLIP, PREPROCESSOR, PROCESSOR, SIGLIP, preprocessor_to_hf, processor_to_hf
from clip_jax.tokenizers.added_tokens import LEGACY
from clip_jax.tokenizers.cleaning import Cleaning
from clip_jax.tokenizers.published import FILES as TOKENIZER_FILES
from clip_jax.tokenizers.published import CaptionTokenizer
from clip_jax.tokenizers.run_tokenizer import TRAINED
from clip_jax.weights.hf import FILES as HF_FILES
from clip_jax.weights.hf import config_to_hf, hf_names
from clip_jax.weights.one_tower import OneTower
from clip_jax.weights.open_clip import CONFIG as OPEN_CLIP_CONFIG
from clip_jax.weights.open_clip import config_to_open_clip, has_custom_text
from clip_jax.weights.openai import openai_names
from clip_jax.weights.siglip import config_to_siglip, siglip_names
from clip_jax.weights.timm import other_activation
from dalle_jax.config import write_json
from dalle_jax.errors import UserError, closest
from dalle_jax.storage import path_text
from dalle_jax.weights import write_safetensors, write_tensors

_log = logging.getLogger(__name__)

_TOKENIZERS = {*TOKENIZER_FILES, LEGACY, TRAINED}
"""Files by which `clip_jax.load` knows a tokenizer; one that stays from another would be read in its place."""


def save(clip: Clip, path: epath.PathLike, *, format: str = "hf") -> None:
    """Writes a folder of weights, config and, where it has a form there, the tokenizer.

    Args:
      clip: as `load` gives it.
      path: the folder; made where it does not exist. Files of the same names are replaced, and so is a tokenizer.
      format: `hf`, for `transformers.CLIPModel.from_pretrained(path)`, `SiglipModel` of a SigLIP; or `open_clip`, for
        `open_clip.create_model("local-dir:" + path)`.

    Raises:
      UserError: the format is none of these or has no such model, or the folder cannot be written.
    """
    writers = {"hf": _write_hf, "open_clip": _write_open_clip}
    if format not in writers:
        raise UserError(f"unknown format '{format}'{closest(format, writers)} (known: {', '.join(writers)})")
    if isinstance(clip, OneTower):
        raise UserError(f"{clip.path} holds the {clip.side.word} tower alone: a whole CLIP is saved, or none")
    if clip.config.loss not in list(Loss):
        known = " and ".join(Loss)
        raise UserError(f"the others' files know the losses {known}: a model of '{clip.config.loss}' is not saved so")
    if "://" in path_text(path):
        raise UserError(f"{path}: weights are written to local folders alone; save here and copy them there")
    folder = epath.Path(path)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(clip.variables)}
    files = writers[format](clip, "float32" if "float32" in dtypes else min(dtypes))
    if PREPROCESSOR in files and (folder / PROCESSOR).exists():  # which comes first where both are there
        files[PROCESSOR] = processor_to_hf(files[PREPROCESSOR])
    if format == "hf" and (folder / OPEN_CLIP_CONFIG).exists():
        _log.warning(
            "%s holds open_clip's weights too, which clip_jax.load reads first: save with format='open_clip' as well, "
            "or remove them",
            folder,
        )
    if format == "open_clip" and any((folder / name).exists() for name in HF_FILES):
        _log.warning(
            "%s holds Hugging Face's weights too, which transformers reads: save with format='hf' as well", folder
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = _tokenizer_files(clip)
        for name, content in (files | tokenizer).items():
            _write(folder / name, content)
        for name in _TOKENIZERS - tokenizer.keys() if tokenizer else ():  # which may come first
            (folder / name).unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot write into the folder {folder}: {error.strerror}") from error


def _write_hf(clip: Clip, dtype: str) -> dict[str, Any]:
    if _has_parts_of_siglip(clip.config):
        return {
            "config.json": config_to_siglip(clip.config, dtype),
            PREPROCESSOR: preprocessor_to_hf(clip.config.vision, SIGLIP),
            "model.safetensors": functools.partial(write_tensors, siglip_names(clip.config), clip.variables),
        }
    return {
        "config.json": config_to_hf(clip.config, dtype),
        PREPROCESSOR: preprocessor_to_hf(clip.config.vision, CLIP),
        "model.safetensors": functools.partial(write_tensors, hf_names(clip.config), clip.variables),
    }


def _write_open_clip(clip: Clip, dtype: str) -> dict[str, Any]:
    del dtype  # open_clip converts
    config = clip.config
    settings = config_to_open_clip(config)
    cleaning = clip.tokenize.cleaning if isinstance(clip.tokenize, CaptionTokenizer) else None
    if cleaning not in (None, Cleaning.LOWER):
        settings["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": cleaning.value}
    _tell_activation(config.vision)
    names = openai_names(config, text_prefix="text." if has_custom_text(config) else "")
    return {
        OPEN_CLIP_CONFIG: settings,
        "open_clip_model.safetensors": functools.partial(write_tensors, names, clip.variables),
    }


def _tell_activation(vision: VisionConfig) -> None:
    theirs = other_activation(vision) if vision.tower is VisionTower.SIGLIP else None
    if theirs is not None:
        _log.warning(
            f"the image tower has the activation '{vision.vit.activation.value}' and open_clip's of the same "
            f"sizes '{theirs.value}': its features will be close and not equal; clip_jax.load keeps what is here"
        )


def _has_parts_of_siglip(config: ClipConfig) -> bool:
    towers = (config.vision.tower, config.text.tower)
    return config.objective.has_bias or towers[0] is VisionTower.SIGLIP or towers[1] is TextTower.SIGLIP


def _tokenizer_files(clip: Clip) -> dict[str, Any]:
    """A tokenizer that is neither published nor trained here is the caller's to keep."""
    return dict(clip.tokenize.files()) if isinstance(clip.tokenize, CaptionTokenizer) else {}


def _write(file: epath.Path, content: Any) -> None:
    if callable(content):
        write_safetensors(file, content())
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        write_json(file, content)
