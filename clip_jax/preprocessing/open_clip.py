"""open_clip's `preprocess_cfg`: what it says of a model's images, read into `VisionConfig` and written from it."""

from collections.abc import Mapping
from typing import Any

from clip_jax.config import VisionConfig
from dalle_jax.data.config import Augment, Resample, Resizing
from dalle_jax.errors import UserError

_MODES = {"shortest": Augment.CLIP_INFERENCE, "squash": Augment.SQUARE, "longest": Augment.LETTERBOX}

# `random` is for training alone: at inference it is bicubic.
_FILTERS = {"bicubic": Resample.BICUBIC, "bilinear": Resample.BILINEAR, "random": Resample.BICUBIC}


def images_from_open_clip(preprocess: Mapping[str, Any], vision: VisionConfig, where: str) -> dict[str, Any]:
    """The fields of `VisionConfig` that a `preprocess_cfg` has a word for.

    Args:
      preprocess: the section; empty where there is none.
      vision: the model's, which a silent section leaves as it is.
      where: the file, for messages.

    Raises:
      UserError: a setting is not applied here, and the message names it.
    """
    given = {name: value for name, value in preprocess.items() if value is not None}
    size = given.pop("size", vision.image_size)
    if any(side != vision.image_size for side in (size if isinstance(size, list | tuple) else [size])):
        raise _refusal("size", size, f"image_size is {vision.image_size}", where)
    if (mode := given.pop("mode", "RGB")) != "RGB":
        raise _refusal("mode", mode, "images are RGB", where)
    mean, std = (_three(given, name, where) for name in ("mean", "std"))
    resize, interpolation = given.pop("resize_mode", None) or "shortest", given.pop("interpolation", None) or "bicubic"
    if resize not in _MODES:
        raise _refusal("resize_mode", resize, f"those here are {', '.join(_MODES)}", where)
    if interpolation not in _FILTERS:
        raise _refusal("interpolation", interpolation, f"those here are {', '.join(_FILTERS)}", where)
    fill = given.pop("fill_color", 0)
    if isinstance(fill, bool) or not isinstance(fill, int) or not 0 <= fill <= 255:
        raise _refusal("fill_color", fill, "it is one level from 0 to 255", where)
    if given:
        raise _refusal(*next(iter(given.items())), "it is not applied here", where)
    return {
        "pixel_mean": mean or vision.pixel_mean,
        "pixel_std": std or vision.pixel_std,
        "preprocessing": _MODES[resize],
        "resizing": Resizing(_FILTERS[interpolation], fill=fill if resize == "longest" else 0),
    }


def images_to_open_clip(vision: VisionConfig) -> dict[str, Any]:
    """The `preprocess_cfg` of a model.

    Raises:
      UserError: open_clip does not bring images to a square so.
    """
    resizing = vision.resizing
    filters = {ours: theirs for theirs, ours in reversed(_FILTERS.items())}
    if resizing.resample not in filters:
        raise UserError(
            f"open_clip resizes bicubic or bilinear, not '{resizing.resample.value}': save with format='hf'"
        )
    settings = {
        "mean": list(vision.pixel_mean),
        "std": list(vision.pixel_std),
        "resize_mode": {ours: theirs for theirs, ours in _MODES.items()}[vision.preprocessing],
    }
    if resizing.resample is not Resample.BICUBIC:
        settings["interpolation"] = filters[resizing.resample]
    return settings | ({"fill_color": resizing.fill} if resizing.fill else {})


def _three(given: dict[str, Any], name: str, where: str) -> tuple[float, ...] | None:
    """Of one number or three; None where there is none, or 0, which open_clip takes for none."""
    value = given.pop(name, None) or None
    if value is None:
        return None
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(values) != 3 or not all(isinstance(x, int | float) for x in values) or (name == "std" and min(values) <= 0):
        raise _refusal(name, value, "it is one number or three, of std above 0", where)
    return tuple(map(float, values))


def _refusal(name: str, value: Any, why: str, where: str) -> UserError:
    return UserError(f"{where}: preprocess_cfg.{name}={value!r} is not built here: {why}")
