"""Hugging Face's CLIP: folders with a `config.json`, and the names of `CLIPModel`'s parameters."""

from collections.abc import Mapping
from typing import Any

from clip_jax.config import ClipConfig, ReadAt, TextConfig, TextTower, VisionConfig, VisionTower, tower_config
from clip_jax.preprocessing.hf import CLIP, images_from_hf
from clip_jax.tokenizers.text_ends import end_at_highest, end_of_settings
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.transformer import TransformerConfig
from dalle_jax.weights import Names

FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "flax_model.msgpack",
)
"""Where weights are in a folder, the first that is there."""

IGNORED = ("*.position_ids",)
"""Tensors beside the parameters, which older files hold."""

ACTIVATIONS = {
    "quick_gelu": Activation.QUICK_GELU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}
"""By Hugging Face's name; of two names for one, the last is written."""

# What `CLIPTextConfig` and `CLIPVisionConfig` take where a file is silent.
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_LEGACY_END = 2
"""An `eos_token_id` that older files hold by mistake: the highest id of a caption is its end then."""


def hf_names(config: ClipConfig) -> Names:
    """The tensors of `CLIPModel` for every variable of a model."""
    names, text, vision = Names(), config.text, config.vision
    names.array("params/logit_scale", "logit_scale", ())
    for ours, theirs, width in (
        ("text_projection", "text_projection", text.transformer.embed_dim),
        ("vision_projection", "visual_projection", vision.embed_dim),
    ):
        names.array(f"params/{ours}/kernel", f"{theirs}.weight", (config.embed_dim, width), (1, 0))
    width, ours, theirs = text.transformer.embed_dim, "params/text", "text_model.embeddings"
    names.array(f"{ours}/token_embedding/embedding", f"{theirs}.token_embedding.weight", (text.vocab_size, width))
    names.array(f"{ours}/position_embedding", f"{theirs}.position_embedding.weight", (text.context_length, width))
    transformer_names(names, f"{ours}/transformer", "text_model.encoder", text.transformer)
    names.norm(f"{ours}/norm_final", "text_model.final_layer_norm", width)
    width, ours, theirs = vision.embed_dim, "params/vision", "vision_model.embeddings"
    side = vision.patch_size
    patches = f"{theirs}.patch_embedding.weight"
    names.array(f"{ours}/patch_embedding/kernel", patches, (width, 3, side, side), (2, 3, 1, 0))
    names.array(f"{ours}/class_embedding", f"{theirs}.class_embedding", (width,))
    names.array(f"{ours}/position_embedding", f"{theirs}.position_embedding.weight", (vision.num_patches + 1, width))
    names.norm(f"{ours}/norm_pre", "vision_model.pre_layrnorm", width)
    transformer_names(names, f"{ours}/transformer", "vision_model.encoder", vision.vit)
    names.norm(f"{ours}/norm_post", "vision_model.post_layernorm", width)
    return names


def transformer_names(names: Names, ours: str, theirs: str, config: TransformerConfig) -> None:
    """Adds the blocks of a tower, CLIP's and SigLIP's alike."""
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    for i in range(config.num_layers):
        block, at, layer = f"{theirs}.layers.{i}", (i,), f"{ours}/group/layer_0"
        names.norm(f"{layer}/norm_1", f"{block}.layer_norm1", width, at)
        names.norm(f"{layer}/norm_2", f"{block}.layer_norm2", width, at)
        attention = f"{layer}/attention"
        for j, part in enumerate("qkv"):
            weight, bias = f"{block}.self_attn.{part}_proj.weight", f"{block}.self_attn.{part}_proj.bias"
            names.array(f"{attention}/qkv_kernel", weight, (inner, width), (1, 0), (i, None, j))
            names.array(f"{attention}/qkv_bias", bias, (inner,), at=(i, j))
        names.linear(f"{attention}/out", f"{block}.self_attn.out_proj", (inner, width), at)
        names.linear(f"{layer}/mlp/in", f"{block}.mlp.fc1", (width, config.mlp_dim), at)
        names.linear(f"{layer}/mlp/out", f"{block}.mlp.fc2", (config.mlp_dim, width), at)


def config_from_hf(settings: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> ClipConfig:
    """The model that a folder's `config.json` describes.

    Args:
      settings: of `config.json`.
      preprocessor: of its image processor (`read_preprocessor`); empty where there is none.
      where: the folder, for messages.

    Raises:
      UserError: sizes are missing or do not fit together.
    """
    # Old files carry a section twice; where they differ, transformers takes the one with `_dict`.
    text, vision = (
        defaults | section_from_hf(settings, name, where) | section_from_hf(settings, f"{name}_dict", where)
        for name, defaults in (("text_config", _TEXT_DEFAULTS), ("vision_config", _VISION_DEFAULTS))
    )
    if vision["num_channels"] != 3:
        raise UserError(f"{where}: its image tower reads {vision['num_channels']} channels, and images have 3")
    try:
        normalization = images_from_hf(preprocessor, vision["image_size"], CLIP, where)
        end_id = end_of_settings(text["eos_token_id"], where)
        if end_id is None:
            raise UserError(f"{where}/config.json: eos_token_id is null, and the feature is read there: name the token")
        end: dict[str, Any] = {"end_id": end_id}
        if end_id == _LEGACY_END:
            end = end_at_highest(text["vocab_size"], where)
        return ClipConfig(
            settings.get("projection_dim", 512),
            VisionConfig(vision["image_size"], vision["patch_size"], tower_from_hf(vision, where), **normalization),
            TextConfig(
                text["vocab_size"],
                text["max_position_embeddings"],
                transformer=tower_from_hf(text, where),
                **end,
            ),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}/config.json describes no model: {error}") from error


def section_from_hf(settings: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A part of `config.json`; empty where there is none.

    Raises:
      UserError: it is not an object.
    """
    section = settings.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{where}/config.json describes no model: its '{name}' is not an object")
    return section | {size: _whole(section[size], size, where) for size in _SIZES if size in section}


_SIZES = (
    "hidden_size",
    "image_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "patch_size",
    "vocab_size",
)


def _whole(value: Any, name: str, where: str) -> int:
    """A size, which may be written as `2.0` or, of a square, as both sides."""
    sides = value if isinstance(value, list) and value else [value]
    if any(side != sides[0] for side in sides):
        raise UserError(f"{where}/config.json describes no model: {name} is {value}, and images here are square")
    if isinstance(sides[0], bool) or not isinstance(sides[0], int | float) or sides[0] != int(sides[0]):
        raise UserError(f"{where}/config.json describes no model: {name} is {value!r}, which is not a whole number")
    return int(sides[0])


def tower_from_hf(sizes: Mapping[str, Any], where: str) -> TransformerConfig:
    """The blocks that a section of `config.json` describes."""
    name, heads = sizes["hidden_act"], sizes["num_attention_heads"]
    if name not in ACTIVATIONS:
        raise UserError(f"{where}: the activation '{name}' is none of {', '.join(ACTIVATIONS)}")
    return tower_config(
        sizes["num_hidden_layers"],
        sizes["hidden_size"],
        sizes["hidden_size"] // heads,
        mlp_dim=sizes["intermediate_size"],
        activation=ACTIVATIONS[name],
        norm_epsilon=float(sizes["layer_norm_eps"]),
    )


def config_to_hf(config: ClipConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
      config: of the model.
      dtype: of its parameters.

    Raises:
      UserError: `CLIPModel` has no such model.
    """
    text, vision = config.text, config.vision
    if text.tower is not TextTower.TRANSFORMER:
        raise UserError(f"CLIPModel has no text tower of kind '{text.tower.value}': this model cannot be saved for it")
    if vision.tower is not VisionTower.VIT:
        kind = vision.tower.value
        raise UserError(f"CLIPModel has no image tower of kind '{kind}': save this model with format='open_clip'")
    highest = text.read_at is ReadAt.HIGHEST
    if text.end_id == _LEGACY_END and not highest:
        raise UserError(f"CLIPModel takes an end-of-text token with id {_LEGACY_END} for the highest id of a caption")
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": dtype,
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            "model_type": "clip_text_model",
            **tower_to_hf(text.transformer),
            "projection_dim": config.embed_dim,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "eos_token_id": _LEGACY_END if highest else text.end_id,
            "bos_token_id": text.end_id - 1,
            "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **tower_to_hf(vision.vit),
            "projection_dim": config.embed_dim,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
        },
    }


def tower_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The other way round; refuses heads that do not share the width."""
    if config.num_heads * config.head_dim != config.embed_dim:
        raise UserError(f"Hugging Face's towers have heads of width / {config.num_heads}, not of {config.head_dim}")
    return {
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": {activation: name for name, activation in ACTIVATIONS.items()}[config.activation],
        "layer_norm_eps": config.norm_epsilon,
        "attention_dropout": 0.0,
    }
