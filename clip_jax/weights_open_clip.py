"""open_clip's folders: its `open_clip_config.json`. Its parameters have OpenAI's names (`weights_openai`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.config import ClipConfig, TextConfig, TextTower, VisionConfig, resnet_config, tower_config
from dalle_jax.data.config import Augment
from dalle_jax.errors import UserError
from dalle_jax.nn.transformer import Activation, TransformerConfig

CONFIG = "open_clip_config.json"
FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""Where weights are in a folder, the first that is there."""

# What open_clip takes where a file is silent.
_VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}

# Settings that change the model, with the values under which it is the one that is built here.
_NEUTRAL = {"pool_type": ("tok", "argmax", "eos"), "pos_embed_type": ("learnable",), "proj_type": ("linear",)}

_RESIZE = {"shortest": Augment.CLIP_INFERENCE, "squash": Augment.SQUARE}

# Settings that change training, tokens or outputs, and leave the model as it is.
_ASIDE = {
    "patch_dropout",
    "output_tokens",
    "pad_id",
    "eos_id",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "tokenizer_mode",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "norm_kwargs",
    "act_kwargs",
    "timm_model_pretrained",
    "hf_model_pretrained",
}


def config_from_open_clip(settings: Mapping[str, Any], where: str) -> ClipConfig:
    """The model that a folder's `open_clip_config.json` describes.

    Raises:
      UserError: it has parts that are not built here, or sizes do not fit together.
    """
    model = settings.get("model_cfg")
    if not isinstance(model, dict) or "embed_dim" not in model:
        raise UserError(f"{where}/{CONFIG} has no 'model_cfg' with an 'embed_dim'")
    vision, text = _section(model, "vision_cfg", _VISION, where), _section(model, "text_cfg", _TEXT, where)
    preprocess = _object(settings, "preprocess_cfg", where)
    quick = bool(model.get("quick_gelu"))
    try:
        normalization: dict[str, Any] = {
            ours: tuple(preprocess[theirs])
            for ours, theirs in (("pixel_mean", "mean"), ("pixel_std", "std"))
            if preprocess.get(theirs)
        }
        resize = preprocess.get("resize_mode") or "shortest"
        if resize not in _RESIZE:
            raise UserError(f"{where}/{CONFIG}: preprocess_cfg.resize_mode='{resize}' is not built here")
        normalization["preprocessing"] = _RESIZE[resize]
        if (preprocess.get("interpolation") or "bicubic") != "bicubic":
            filter_ = preprocess["interpolation"]
            raise UserError(f"{where}/{CONFIG}: preprocess_cfg.interpolation='{filter_}' is not built here")
        end_id = text["eos_id"] if text.get("pool_type") == "eos" else text["vocab_size"] - 1
        size = vision["image_size"]
        side, *other = size if isinstance(size, list | tuple) else (size,)
        if any(length != side for length in other):
            raise ValueError(f"pictures of {size} are not square")
        return ClipConfig(
            model["embed_dim"],
            dataclasses.replace(_vision(side, vision, quick), **normalization),
            TextConfig(
                text["vocab_size"], text["context_length"], end_id, _tower(text, text["width"] // text["heads"], quick)
            ),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}/{CONFIG} describes no model: {error}") from error


def _vision(image_size: int, sizes: Mapping[str, Any], quick: bool) -> VisionConfig:
    """A list of layers means a ResNet."""
    layers = sizes["layers"]
    if isinstance(layers, list | tuple):
        first, second, third, fourth = layers
        return resnet_config(image_size, (first, second, third, fourth), sizes["width"], head_dim=sizes["head_width"])
    return VisionConfig(image_size, sizes["patch_size"], _tower(sizes, sizes["head_width"], quick))


def _section(model: Mapping[str, Any], name: str, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    section = _object(model, name, where)
    for key, value in section.items():
        known = key in defaults or key in _ASIDE or value in _NEUTRAL.get(key, ())
        if not known and value not in (None, False, 0, "", "default"):
            other = "; of a SigLIP, load Hugging Face's folder" if "siglip" in str(value) else ""
            raise UserError(f"{where}/{CONFIG}: {name}.{key}={value!r} is of a model that is not built here{other}")
    return {**defaults, **section}


def _object(settings: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    section = settings.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{where}/{CONFIG} describes no model: its '{name}' is no object")
    return section


def _tower(sizes: Mapping[str, Any], head_dim: int, quick: bool) -> TransformerConfig:
    approximate = (sizes.get("act_kwargs") or {}).get("approximate")
    activation = Activation.GELU_TANH if approximate == "tanh" else Activation.GELU
    return tower_config(
        sizes["layers"],
        sizes["width"],
        head_dim,
        mlp_dim=int(sizes["width"] * sizes["mlp_ratio"]),
        activation=Activation.QUICK_GELU if quick else activation,
        norm_epsilon=(sizes.get("norm_kwargs") or {}).get("eps", 1e-5),
    )


def config_to_open_clip(config: ClipConfig) -> dict[str, Any]:
    """The `open_clip_config.json` of a model.

    Raises:
      UserError: open_clip has no such model.
    """
    text, vision = config.text, config.vision
    if text.tower is not TextTower.TRANSFORMER:
        raise UserError(f"open_clip has no text tower of kind '{text.tower.value}': this model cannot be saved for it")
    activations = {text.transformer.activation}
    if vision.transformer is not None:
        activations.add(vision.transformer.activation)
    if len(activations & {Activation.QUICK_GELU, Activation.RELU}) and activations != {Activation.QUICK_GELU}:
        found = " and ".join(sorted(activation.value for activation in activations))
        raise UserError(f"open_clip has QuickGELU in both towers or GELU in both, not {found}")
    # The end of a caption is its highest id, or an id that is told.
    pool = {} if text.end_id == text.vocab_size - 1 else {"pool_type": "eos", "eos_id": text.end_id}
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": activations == {Activation.QUICK_GELU},
            "vision_cfg": {
                "image_size": vision.image_size,
                **_vision_sizes(vision),
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                **_sizes(text.transformer),
                "heads": text.transformer.num_heads,
                **pool,
            },
        },
        "preprocess_cfg": {
            "mean": list(vision.pixel_mean),
            "std": list(vision.pixel_std),
            "resize_mode": {ours: theirs for theirs, ours in _RESIZE.items()}[vision.preprocessing],
        },
    }


def _vision_sizes(config: VisionConfig) -> dict[str, Any]:
    resnet = config.resnet
    if resnet is not None:
        return {"layers": list(resnet.layers), "width": resnet.width, "head_width": resnet.head_dim, "patch_size": None}
    return {"patch_size": config.patch_size, **_sizes(config.vit), "head_width": config.vit.head_dim}


def _sizes(config: TransformerConfig) -> dict[str, Any]:
    if config.num_heads * config.head_dim != config.embed_dim:
        raise UserError(f"open_clip's heads are {config.embed_dim // config.num_heads} wide, not {config.head_dim}")
    sizes: dict[str, Any] = {
        "width": config.embed_dim,
        "layers": config.num_layers,
        # Slightly above the quotient, which may fall below the whole number that open_clip cuts it to.
        "mlp_ratio": (config.mlp_dim + 0.01) / config.embed_dim,
        "norm_kwargs": {"eps": config.norm_epsilon},
    }
    if config.mlp_dim % config.embed_dim == 0:
        sizes["mlp_ratio"] = config.mlp_dim / config.embed_dim
    if config.activation is Activation.GELU_TANH:
        sizes["act_kwargs"] = {"approximate": "tanh"}
    return sizes
