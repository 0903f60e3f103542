"""Published weights: which family a path is of, its config, and its parameters straight onto the devices."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from clip_jax.config import ClipConfig
from clip_jax.model import abstract_variables
from clip_jax.preprocessing.hf import read_preprocessor
from clip_jax.tokenizers.cleaning import Cleaning
from clip_jax.weights.big_vision import big_vision_names, deduce_big_vision, is_big_vision, without_root
from clip_jax.weights.flax import from_flax
from clip_jax.weights.folders import refuse_other_folders, refuse_parts
from clip_jax.weights.hf import FILES as HF_FILES
from clip_jax.weights.hf import IGNORED as HF_IGNORED
from clip_jax.weights.hf import config_from_hf, hf_names
from clip_jax.weights.one_tower import ONE_TOWER, Side, completed, kept_shapes, one_tower, whole_names, whole_settings
from clip_jax.weights.open_clip import CONFIG as OPEN_CLIP_CONFIG
from clip_jax.weights.open_clip import FILES as OPEN_CLIP_FILES
from clip_jax.weights.open_clip import cleaning_from_open_clip, config_from_open_clip
from clip_jax.weights.openai import IGNORED as OPENAI_IGNORED
from clip_jax.weights.openai import check_official, deduce_config, default_activation, openai_names, text_prefix
from clip_jax.weights.siglip import config_from_siglip, siglip_names
from dalle_jax.errors import UserError, closest
from dalle_jax.nn.layers import Activation
from dalle_jax.storage import as_path
from dalle_jax.training.trees import unbox
from dalle_jax.weights import (
    NOT_DOWNLOADED,
    Names,
    Tensor,
    check_tensors,
    find_file,
    is_torchscript,
    local_path,
    read_params,
    read_settings,
    read_tensors,
)

_log = logging.getLogger(__name__)

_HF_FAMILIES = {"clip": (config_from_hf, hf_names), "siglip": (config_from_siglip, siglip_names)}
"""By `model_type`: what makes the config of a folder's settings, and the names of a config's tensors."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A model that another program wrote: its config, and its tensors, still in their files."""

    config: ClipConfig
    path: str
    folder: str | None
    """Where files of its tokenizer may be; None: of a bare file, which is read with OpenAI's."""
    names: Names
    tensors: Mapping[str, Tensor]
    cleaning: Cleaning | None = None
    """Of captions; None: what the tokenizer does of itself."""
    side: Side | None = None
    """The tower that is there, where it is one alone."""

    def read(self, *, dtype: str | None = "float32", shardings: Any = None) -> Any:
        """The model's variables: `params`, and of a ResNet `batch_stats`.

        Args:
          dtype: of the parameters; None: as the file has them.
          shardings: see `dalle_jax.weights.read_params`; of a tree like `abstract_variables(config)`.
        """
        shapes = unbox(abstract_variables(self.config))
        if self.side is None:
            return read_params(self.names, shapes, self.tensors, dtype=dtype, shardings=shardings)
        shapes = kept_shapes(shapes, self.names)
        variables = read_params(self.names, shapes, self.tensors, dtype=dtype, shardings=shardings)
        return variables | {"params": completed(variables["params"], self.config, self.side)}


def is_published(path: epath.PathLike) -> bool:
    """Whether a path is one that `open_published` is for: a file, or a folder as Hugging Face or open_clip make it."""
    path = as_path(path)
    if path.is_file() or (path / OPEN_CLIP_CONFIG).is_file():
        return True
    return any((path / name).is_file() for name in HF_FILES)


def open_published(
    path: epath.PathLike,
    *,
    activation: str | Activation | None = None,
    key: str | None = None,
    prefix: str | None = None,
    whole: bool = True,
) -> Published:
    """Opens published weights and compares them with the model that they describe; no numbers are read yet.

    Args:
      path: a file of weights with OpenAI's (or open_clip's) names, one of big_vision's, or a folder of Hugging Face's
        or open_clip's, or a file of weights in one. A TorchScript archive is OpenAI's, whatever lies beside it.
      activation: of the MLPs, where the file cannot tell: `quick_gelu` (the default: OpenAI's), `gelu` (most of
        open_clip's), `gelu_tanh`.
      key: see `dalle_jax.weights.read_tensors`.
      prefix: likewise.
      whole: whether both towers must be there.

    Raises:
      UserError: the path is of no known family, the file is damaged or hostile, or parameters are missing, unknown or
        of a wrong shape; the message names them.
    """
    path = local_path(path)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    file = None if path == folder else path
    chosen, part = _activation(activation), {"key": key, "prefix": prefix}
    if file is not None:
        refuse_parts(file, [os.path.basename(file)])
        check_official(file)
        # OpenAI's own, whatever lies beside it: open_clip's and Hugging Face's are not programs.
        if is_torchscript(file):
            return _bare_file(file, chosen, part)
    opened = None
    if os.path.isfile(os.path.join(folder, OPEN_CLIP_CONFIG)):
        opened = _open_clip_folder(folder, file, part)
    if opened is None and os.path.isfile(os.path.join(folder, "config.json")):
        opened = _hf_folder(folder, file, part)
    if opened is None:
        return _bare_file(path, chosen, part)
    if whole and opened.side is not None:
        raise UserError(f"{path} holds the {opened.side.word} tower alone, and both are needed: name a whole CLIP")
    if chosen is not None and chosen is not (said := _said_activation(opened)):
        raise UserError(
            f"{path} says that its activation is '{said.value}', not '{chosen.value}': leave activation out, or set it "
            "alike"
        )
    return opened


_Part = dict[str, str | None]
"""Which tensors of a file are read: `key` and `prefix` of `read_tensors`."""


def _hf_folder(folder: str, file: str | None, part: _Part) -> Published | None:
    """None where the file is none of Hugging Face's models, for all that it lies in such a folder."""
    try:
        settings = read_settings(os.path.join(folder, "config.json"))
    except UserError:
        if file is None:
            raise
        return None  # it may be anybody's
    if "model_type" not in settings:
        return None
    family = settings["model_type"]
    side = ONE_TOWER.get(family)
    if side is not None:
        settings, family = whole_settings(settings, side), family.split("_")[0]
    if family not in _HF_FAMILIES and file is not None:
        return None
    if family not in _HF_FAMILIES:
        known = " and ".join(f"'{name}'" for name in _HF_FAMILIES)
        raise UserError(
            f"{folder} holds a model of type '{family}', and those read here are of {known}, whole or one tower"
        )
    config_from, names_of = _HF_FAMILIES[family]
    # Beside a text tower it may be a whole model's.
    preprocessor = {} if side is Side.TEXT else read_preprocessor(folder)
    config = config_from(settings, preprocessor, folder)
    path = file or find_file(folder, HF_FILES)
    if path is None:
        refuse_other_folders(folder)
        raise UserError(f"{folder} has a config.json and no weights beside it ({', '.join(HF_FILES)})")
    tensors, names = from_flax(read_tensors(path, **part)), names_of(config)
    if side is not None:
        tensors = whole_names(tensors, side)
        config, names = one_tower(config, names, tensors, side=side)
    if file is not None and not any(name.startswith(("text_model.", "vision_model.")) for name in tensors):
        return None
    return _checked(config, path, folder, names, tensors, HF_IGNORED, side=side)


def _open_clip_folder(folder: str, file: str | None, part: _Part) -> Published | None:
    """None where the folder is Hugging Face's too, as some on their hub are, and the weights are in that form."""
    path, both = file or find_file(folder, OPEN_CLIP_FILES), find_file(folder, ["config.json"]) is not None
    if path is None and both:
        return None
    settings = read_settings(os.path.join(folder, OPEN_CLIP_CONFIG))
    config = config_from_open_clip(settings, folder)
    if path is None:
        gone = next((name for name in OPEN_CLIP_FILES if os.path.islink(os.path.join(folder, name))), None)
        told = f"{gone} is a link to nothing" if gone else ", ".join(OPEN_CLIP_FILES)
        raise UserError(f"{folder} has an {OPEN_CLIP_CONFIG} and no weights beside it ({told}); {NOT_DOWNLOADED}")
    tensors = read_tensors(path, **part)
    if both and any(name.startswith("text_model.") for name in tensors):
        return None
    names = openai_names(config, text_prefix=text_prefix(tensors))
    opened = _checked(config, path, folder, names, tensors, OPENAI_IGNORED)
    return dataclasses.replace(opened, cleaning=cleaning_from_open_clip(settings, folder))


def _bare_file(path: str, activation: Activation | None, part: _Part) -> Published:
    if os.path.isdir(path):
        refuse_other_folders(path)
        raise UserError(
            f"{path} is not a folder of Hugging Face's or open_clip's: give a file in it, or a work directory"
        )
    tensors = read_tensors(path, **part)
    if is_big_vision(tensors):
        tensors = without_root(tensors)
        config = deduce_big_vision(tensors, path)
        names = big_vision_names(config, tensors, path)
        # The tokenizer is a file of its own, which may lie beside the weights.
        return _checked(config, path, os.path.dirname(path) or ".", names, tensors, ())
    usual, why = default_activation(tensors)
    config = deduce_config(tensors, path, activation or usual)
    names = openai_names(config, text_prefix=text_prefix(tensors))
    published = _checked(config, path, None, names, tensors, OPENAI_IGNORED)
    if activation is None and not is_torchscript(path):
        _log.warning("%s cannot tell its activation, and %s", path, why)
    return published


def _checked(
    config: ClipConfig,
    path: str,
    folder: str | None,
    names: Names,
    tensors: Mapping[str, Tensor],
    ignored: tuple[str, ...],
    side: Side | None = None,
) -> Published:
    check_tensors(names, tensors, path, ignored)
    return Published(config, path, folder, names, tensors, side=side)


def _said_activation(published: Published) -> Activation:
    config = published.config
    return (config.vision.vit if published.side is Side.IMAGE else config.text.transformer).activation


def _activation(name: str | Activation | None) -> Activation | None:
    if name is None or isinstance(name, Activation):
        return name
    known = [activation.value for activation in Activation]
    if name not in known:
        raise UserError(f"unknown activation '{name}'{closest(name, known)} (known: {', '.join(known)})")
    return Activation(name)
