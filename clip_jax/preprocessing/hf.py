"""Hugging Face's image processors: what a folder says of its images, read into `VisionConfig` and written from it.

A setting either has the effect that it has in transformers, or is refused by its name; none is left out in silence.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from clip_jax.config import VisionConfig
from dalle_jax.data.config import Augment, Resample, Resizing
from dalle_jax.errors import UserError
from dalle_jax.weights import read_settings

PREPROCESSOR = "preprocessor_config.json"
"""What transformers writes up to version 4, and its image processors alone still do."""

PROCESSOR = "processor_config.json"
"""What transformers 5 writes, with the image processor's settings inside, and then goes by."""

_NESTED = "image_processor"

_FILTERS = {0: Resample.NEAREST, 1: Resample.LANCZOS, 2: Resample.BILINEAR, 3: Resample.BICUBIC}
"""By Pillow's number; 4 (box) and 5 (hamming) are not here."""


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """An image processor of transformers: what it does where a file is silent."""

    kind: str
    """In `image_processor_type`, without `Fast` or `Pil`."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crops: bool


CLIP = ImageProcessor("CLIPImageProcessor", VisionConfig.pixel_mean, VisionConfig.pixel_std, crops=True)
SIGLIP = ImageProcessor("SiglipImageProcessor", (0.5,) * 3, (0.5,) * 3, crops=False)

# Of the file, of what is returned, or of tensors in between: images come out alike. Those that a model can be given at
# all are RGB, with `do_convert_rgb` or without.
_NEUTRAL = {
    "auto_map",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "model_input_names",
    "processor_class",
    "return_tensors",
    "transformers_version",
}
_APPLIED = {
    "crop_size",
    "do_center_crop",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
}


def read_preprocessor(folder: str) -> Mapping[str, Any]:
    """The settings of a folder's image processor; empty where there is none.

    Raises:
      UserError: a file is damaged.
    """
    files = {name: os.path.join(folder, name) for name in (PROCESSOR, PREPROCESSOR)}
    found = {name: read_settings(file) for name, file in files.items() if os.path.isfile(file)}
    if _NESTED not in found.get(PROCESSOR, {}):
        return found.get(PREPROCESSOR, {})
    nested = found[PROCESSOR][_NESTED]
    if not isinstance(nested, Mapping):
        raise UserError(f"{files[PROCESSOR]}: its '{_NESTED}' is not an object")
    return nested


def images_from_hf(settings: Mapping[str, Any], image_size: int, usual: ImageProcessor, where: str) -> dict[str, Any]:
    """The fields of `VisionConfig` that an image processor has a word for.

    Args:
      settings: of the processor; empty where there is none.
      image_size: of the model, pixels a side.
      usual: the processor of a file that does not name its own.
      where: the folder, for messages.

    Raises:
      UserError: a setting is not applied here, and the message names it.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    usual = _kind(settings, usual, where)
    for name, value in settings.items():
        if name not in _NEUTRAL | _APPLIED and not name.startswith("_") and value is not False:
            raise _refusal(name, value, "not applied", where)
    if not settings.get("do_resize", True):
        raise _refusal("do_resize", False, "True", where)
    mean, std = _normalization(settings, usual, where)
    resizing = Resizing(_filter(settings.get("resample", 3), where))
    way = _way(settings, image_size, usual, where)
    return {"pixel_mean": mean, "pixel_std": std, "preprocessing": way, "resizing": resizing}


def _kind(settings: Mapping[str, Any], usual: ImageProcessor, where: str) -> ImageProcessor:
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type") or usual.kind
    for known in (CLIP, SIGLIP):
        stem = known.kind.removesuffix("ImageProcessor")
        if name in {known.kind, f"{known.kind}Fast", f"{known.kind}Pil", f"{stem}FeatureExtractor"}:
            return known
    raise _refusal("image_processor_type", name, f"{CLIP.kind} or {SIGLIP.kind}", where)


def _way(settings: Mapping[str, Any], image_size: int, usual: ImageProcessor, where: str) -> Augment:
    """The way to a square. What is resized to is what is cropped: squares that come in again stay as they are."""
    crops, size = settings.get("do_center_crop", usual.crops), settings.get("size", image_size)
    side, by_short_side = _side(size, crops or usual.crops, where)
    if not crops and by_short_side:
        raise _refusal("do_center_crop", False, f"True: size {size} alone makes no square", where)
    crop = settings.get("crop_size", image_size) if crops else image_size
    for name, value, lengths in (("size", size, [side]), ("crop_size", crop, _lengths(crop))):
        if any(length != image_size for length in lengths):
            raise _refusal(name, value, f"{image_size}, the model's image_size", where)
    return Augment.CLIP_INFERENCE if by_short_side else Augment.SQUARE


def _side(size: Any, number_is_short_side: bool, where: str) -> tuple[int, bool]:
    """What `size` resizes to, and whether it is the short side alone."""
    named = isinstance(size, Mapping)
    names = {name for name, length in size.items() if length is not None} if named else {"height", "width"}
    side, *others = _lengths(size) or [None]
    of_square = names in ({"shortest_edge"}, {"height", "width"}) and all(length == side for length in others)
    if not of_square or isinstance(side, bool) or not isinstance(side, int):
        known = "a number, {'shortest_edge': ...}, or {'height': ..., 'width': ...} of a square"
        raise _refusal("size", size, known, where)
    return side, names == {"shortest_edge"} or (isinstance(size, int) and number_is_short_side)


def _lengths(size: Any) -> list[Any]:
    """Of a number, of [height, width], or of sides by name."""
    values = size.values() if isinstance(size, Mapping) else size if isinstance(size, list | tuple) else [size]
    return [length for length in values if length is not None]


def _filter(resample: Any, where: str) -> Resample:
    """Of a number of Pillow's or a name, with or without its enum before it."""
    name = resample.rpartition(".")[2].lower() if isinstance(resample, str) else resample
    named = {filter_.value: filter_ for filter_ in Resample} | _FILTERS
    if isinstance(name, bool) or not isinstance(name, str | int) or name not in named:
        known = ", ".join(f"{number} {filter_.value}" for number, filter_ in _FILTERS.items())
        raise _refusal("resample", resample, known, where)
    return named[name]


def _normalization(
    settings: Mapping[str, Any], usual: ImageProcessor, where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in [0, 1], whatever range the processor brings them to."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize", True):
        mean = _three(settings.get("image_mean", usual.mean), "image_mean", where)
        std = _three(settings.get("image_std", usual.std), "image_std", where)
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
        raise _refusal("rescale_factor", factor, "a number above 0", where)
    largest = factor * 255
    if largest == 1:
        return mean, std
    return tuple(x / largest for x in mean), tuple(x / largest for x in std)


def _three(value: Any, name: str, where: str) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    if len(values) != 3 or not numbers or (name == "image_std" and min(values) <= 0):
        field = name.replace("image_", "pixel_")
        raise _refusal(name, value, f"{field}: a number or three of them, of std above 0", where)
    return tuple(map(float, values))


def _refusal(name: str, value: Any, here: str, where: str) -> UserError:
    return UserError(
        f"{where}: its image processor prepares images in another way than is done here: {name} {value} (here {here}); "
        "the model would see other images than it was trained on"
    )


def preprocessor_to_hf(config: VisionConfig, usual: ImageProcessor) -> dict[str, Any]:
    """The `preprocessor_config.json` of a model.

    Args:
      config: of the image tower.
      usual: the processor of the model's family.

    Raises:
      UserError: transformers has no processor that does the same.
    """
    crops = config.preprocessing is Augment.CLIP_INFERENCE
    if config.preprocessing is Augment.LETTERBOX:
        raise UserError("Hugging Face's image processors have no letterboxing: save this model with format='open_clip'")
    square = {"height": config.image_size, "width": config.image_size}
    crop = {"do_center_crop": crops, "crop_size": square}
    return {
        # The SigLIP processor of transformers 4 leaves out crops.
        "image_processor_type": CLIP.kind if crops else usual.kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": config.image_size} if crops else square,
        "resample": {filter_: number for number, filter_ in _FILTERS.items()}[config.resizing.resample],
        **(crop if crops or usual is CLIP else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
    }


def processor_to_hf(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The `processor_config.json` around the settings of an image processor."""
    family = "SiglipProcessor" if preprocessor["image_processor_type"] == SIGLIP.kind else "CLIPProcessor"
    return {_NESTED: preprocessor, "processor_class": family}
