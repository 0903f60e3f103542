"""open_clip's folders: its `open_clip_config.json`. Its parameters have OpenAI's names (`weights.openai`), those of
SigLIP's image tower timm's (`weights.timm`)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.config import (
    ClipConfig,
    ReadAt,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    resnet_config,
    tower_config,
)
from clip_jax.preprocessing.open_clip import images_from_open_clip, images_to_open_clip
from clip_jax.tokenizers.cleaning import Cleaning
from clip_jax.tokenizers.text_ends import end_at_highest
from clip_jax.weights.siglip import LOGITS, SIGLIP_END
from clip_jax.weights.timm import TOWERS, timm_from_open_clip, timm_to_open_clip
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.transformer import TransformerConfig

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

# Of SigLIP's towers, which are told by all of these together.
_SIGLIP_VISION = {"timm_pool": "map", "timm_proj": "none"}
_SIGLIP_TEXT = {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}
_SIGLIP_TOKENS = {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}}


# Settings that change training, tokens or outputs, and leave the model as it is.
_ASIDE = {
    "patch_dropout",
    "output_tokens",
    "pad_id",
    "eos_id",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
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
    try:
        vision, text = _vision(model, where), _text(model, where)
        cleaning_from_open_clip(settings, where)  # which may refuse
        preprocess = _object(settings, "preprocess_cfg", where)
        vision = dataclasses.replace(vision, **images_from_open_clip(preprocess, vision, f"{where}/{CONFIG}"))
        logits: dict[str, Any] = {}
        if model.get("init_logit_bias") is not None:
            logits = LOGITS | {"init_logit_bias": float(model["init_logit_bias"])}
        return ClipConfig(model["embed_dim"], vision, text, **logits)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}/{CONFIG} describes no model: {error}") from error


def _vision(model: Mapping[str, Any], where: str) -> VisionConfig:
    """A list of layers means a ResNet."""
    if _object(model, "vision_cfg", where).get("timm_model_name") in tuple(TOWERS):
        neutral = {name: (value,) for name, value in _SIGLIP_VISION.items()} | {"timm_model_name": tuple(TOWERS)}
        sizes = _section(model, "vision_cfg", {"image_size": 224}, neutral, where)
        if not _has(model, "vision_cfg", _SIGLIP_VISION, where):
            raise ValueError("its 'vision_cfg' leaves timm_pool or timm_proj out, and SigLIP's are 'map' and 'none'")
        return timm_from_open_clip(sizes)
    sizes = _section(model, "vision_cfg", _VISION, _NEUTRAL, where)
    size, layers = sizes["image_size"], sizes["layers"]
    side, *other = size if isinstance(size, list | tuple) else (size,)
    if any(length != side for length in other):
        raise ValueError(f"images of {size} are not square")
    if isinstance(layers, list | tuple):
        first, second, third, fourth = layers
        return resnet_config(side, (first, second, third, fourth), sizes["width"], head_dim=sizes["head_width"])
    return VisionConfig(side, sizes["patch_size"], _tower(sizes, sizes["head_width"], bool(model.get("quick_gelu"))))


def _text(model: Mapping[str, Any], where: str) -> TextConfig:
    siglip = _has_siglips_text(model, where)
    neutral = {name: (value,) for name, value in _SIGLIP_TEXT.items()} if siglip else {}
    sizes = _section(model, "text_cfg", _TEXT, _NEUTRAL | neutral, where)
    name = sizes.get("hf_tokenizer_name") or ""
    if "siglip2" in name.lower():
        raise UserError(f"{where}/{CONFIG}: text_cfg.hf_tokenizer_name='{name}' is SigLIP 2's, which is not built here")
    blocks = _tower(sizes, sizes["width"] // sizes["heads"], bool(model.get("quick_gelu")))
    if siglip:
        end_id = sizes.get("eos_id", SIGLIP_END)
        return TextConfig(sizes["vocab_size"], sizes["context_length"], end_id, blocks, TextTower.SIGLIP)
    by_id = sizes.get("pool_type") == "eos"
    end = {"end_id": sizes["eos_id"]} if by_id else end_at_highest(sizes["vocab_size"], where)
    return TextConfig(sizes["vocab_size"], sizes["context_length"], transformer=blocks, **end)


def cleaning_from_open_clip(settings: Mapping[str, Any], where: str) -> Cleaning | None:
    """What `tokenizer_kwargs` say is done to captions; None: what the tokenizer does of itself.

    Raises:
      UserError: they say anything else, which is not applied here.
    """
    model = _object(settings, "model_cfg", where)
    text = _object(model, "text_cfg", where)
    options = _object(text, "tokenizer_kwargs", where)
    cleanings = {cleaning.value: cleaning for cleaning in Cleaning}
    for key, value in options.items():
        known = key == "clean" and value in cleanings
        if not known and value not in (None, False, ""):
            raise UserError(
                f"{where}/{CONFIG}: text_cfg.tokenizer_kwargs has {key}={value!r}, which is not applied here (clean is "
                f"{', '.join(cleanings)}): captions would get other ids than the model was trained on"
            )
    cleaning = cleanings.get(options.get("clean") or "")
    if text.get("hf_tokenizer_name") and cleaning is Cleaning.WHITESPACE and not _has_siglips_text(model, where):
        return None  # CLIP's tokenizer of transformers takes capitals for small letters all the same
    return cleaning


def _has_siglips_text(model: Mapping[str, Any], where: str) -> bool:
    return _has(model, "text_cfg", _SIGLIP_TEXT, where)


def _has(model: Mapping[str, Any], name: str, parts: Mapping[str, Any], where: str) -> bool:
    section = _object(model, name, where)
    return all(section.get(key) == value for key, value in parts.items())


def _section(
    model: Mapping[str, Any],
    name: str,
    defaults: Mapping[str, Any],
    neutral: Mapping[str, Sequence[Any]],
    where: str,
) -> dict[str, Any]:
    section = _object(model, name, where)
    for key, value in section.items():
        known = key in defaults or key in _ASIDE or value in neutral.get(key, ())
        if not known and value not in (None, False, 0, "", "default"):
            other = "; of a SigLIP, load Hugging Face's folder" if "siglip" in str(value) else ""
            raise UserError(f"{where}/{CONFIG}: {name}.{key}={value!r} is of a model that is not built here{other}")
    return {**defaults, **section}


def _object(settings: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    section = settings.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{where}/{CONFIG} describes no model: its '{name}' is not an object")
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
    if text.tower is TextTower.BAG_OF_WORDS:
        raise UserError(f"open_clip has no text tower of kind '{text.tower.value}': this model cannot be saved for it")
    custom: dict[str, Any] = {"custom_text": True} if has_custom_text(config) else {}
    if config.objective.has_bias:
        custom["init_logit_bias"] = config.init_logit_bias
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": _is_quick(config),
            **custom,
            "vision_cfg": _vision_sizes(vision),
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                **_sizes(text.transformer),
                "heads": text.transformer.num_heads,
                **_reading(text),
            },
        },
        "preprocess_cfg": images_to_open_clip(vision),
    }


def has_custom_text(config: ClipConfig) -> bool:
    """Whether open_clip makes the model with a text tower of its own, whose names begin with `text.`."""
    return config.text.tower is TextTower.SIGLIP or config.vision.tower is VisionTower.SIGLIP


def _is_quick(config: ClipConfig) -> bool:
    """Raises: UserError: open_clip has no such activations; those of timm's towers are looked at by `weights.timm`."""
    activations = {config.text.transformer.activation}
    if config.vision.tower is VisionTower.VIT:
        activations.add(config.vision.vit.activation)
    if len(activations & {Activation.QUICK_GELU, Activation.RELU}) and activations != {Activation.QUICK_GELU}:
        found = " and ".join(sorted(activation.value for activation in activations))
        raise UserError(f"open_clip has QuickGELU in both towers or GELU in both, not {found}")
    return activations == {Activation.QUICK_GELU}


def _reading(text: TextConfig) -> dict[str, Any]:
    """How captions are read."""
    if text.tower is TextTower.SIGLIP:
        # The position that is read does not depend on the end; it is noted for `clip_jax.load`.
        own = _SIGLIP_TOKENS if text.end_id == SIGLIP_END else {"eos_id": text.end_id}
        return {**_SIGLIP_TEXT, **own}
    # The end of a caption is its highest id, or an id that is told.
    if text.read_at is ReadAt.HIGHEST or text.end_id == text.vocab_size - 1:
        return {}
    return {"pool_type": "eos", "eos_id": text.end_id}


def _vision_sizes(config: VisionConfig) -> dict[str, Any]:
    if config.tower is VisionTower.SIGLIP:
        return timm_to_open_clip(config)
    sizes, resnet = {"image_size": config.image_size, "patch_size": None}, config.resnet
    if resnet is not None:
        return sizes | {"layers": list(resnet.layers), "width": resnet.width, "head_width": resnet.head_dim}
    return sizes | {"patch_size": config.patch_size, **_sizes(config.vit), "head_width": config.vit.head_dim}


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
