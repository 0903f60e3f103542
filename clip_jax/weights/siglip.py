"""Hugging Face's SigLIP: folders with a `config.json`, and the names of `SiglipModel`'s parameters."""

from collections.abc import Mapping
from typing import Any

from clip_jax.config import ClipConfig, Loss, TextConfig, TextTower, VisionConfig, VisionTower
from clip_jax.preprocessing.hf import SIGLIP, images_from_hf
from clip_jax.tokenizers.text_ends import end_of_settings
from clip_jax.weights.hf import section_from_hf, tower_from_hf, tower_to_hf, transformer_names
from dalle_jax.data.config import Augment
from dalle_jax.errors import UserError
from dalle_jax.nn.transformer import TransformerConfig
from dalle_jax.weights import Names

PIXELS: dict[str, Any] = {"pixel_mean": SIGLIP.mean, "pixel_std": SIGLIP.std, "preprocessing": Augment.SQUARE}
"""What SigLIP's images are brought to."""

LOGITS: dict[str, Any] = {"init_logit_scale": 10.0, "loss": Loss.SIGMOID, "init_logit_bias": -10.0}
"""Of the loss (Zhai et al. 2023, §3.2)."""

# What `SiglipTextConfig` and `SiglipVisionConfig` take where a file is silent.
_TOWER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_TEXT_DEFAULTS: dict[str, Any] = _TOWER_DEFAULTS | {"vocab_size": 32000, "max_position_embeddings": 64}
_VISION_DEFAULTS: dict[str, Any] = _TOWER_DEFAULTS | {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "vision_use_head": True,
}
SIGLIP_END = 1
"""The published tokenizer's end."""

_NOT_THE_END = 49407
"""CLIP's, which `SiglipTextConfig` names by mistake."""


def siglip_names(config: ClipConfig) -> Names:
    """The tensors of `SiglipModel` for every variable of a model."""
    names, text, vision = Names(), config.text, config.vision
    names.array("params/logit_scale", "logit_scale", (1,))
    names.array("params/logit_bias", "logit_bias", (1,))
    width, ours, theirs = text.transformer.embed_dim, "params/text", "text_model.embeddings"
    names.array(f"{ours}/token_embedding/embedding", f"{theirs}.token_embedding.weight", (text.vocab_size, width))
    names.array(f"{ours}/position_embedding", f"{theirs}.position_embedding.weight", (text.context_length, width))
    transformer_names(names, f"{ours}/transformer", "text_model.encoder", text.transformer)
    names.norm(f"{ours}/norm_final", "text_model.final_layer_norm", width)
    names.linear("params/text_projection", "text_model.head", (width, config.embed_dim))
    width, ours, theirs = vision.vit.embed_dim, "params/vision", "vision_model.embeddings"
    side, patches = vision.patch_size, f"{theirs}.patch_embedding"
    names.array(f"{ours}/patch_embedding/kernel", f"{patches}.weight", (width, 3, side, side), (2, 3, 1, 0))
    names.array(f"{ours}/patch_embedding/bias", f"{patches}.bias", (width,))
    names.array(f"{ours}/position_embedding", f"{theirs}.position_embedding.weight", (vision.num_patches, width))
    transformer_names(names, f"{ours}/transformer", "vision_model.encoder", vision.vit)
    names.norm(f"{ours}/norm_post", "vision_model.post_layernorm", width)
    _pooling(names, f"{ours}/pooling", "vision_model.head", vision.vit)
    return names


def _pooling(names: Names, ours: str, theirs: str, config: TransformerConfig) -> None:
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    names.array(f"{ours}/probe", f"{theirs}.probe", (1, 1, width))
    # Rows of the weight are those of q, then k, then v.
    names.array(f"{ours}/qkv_kernel", f"{theirs}.attention.in_proj_weight", (3 * inner, width), (1, 0))
    names.array(f"{ours}/qkv_bias", f"{theirs}.attention.in_proj_bias", (3 * inner,))
    names.linear(f"{ours}/out", f"{theirs}.attention.out_proj", (inner, width))
    names.norm(f"{ours}/norm", f"{theirs}.layernorm", width)
    names.linear(f"{ours}/mlp/in", f"{theirs}.mlp.fc1", (width, config.mlp_dim))
    names.linear(f"{ours}/mlp/out", f"{theirs}.mlp.fc2", (config.mlp_dim, width))


def config_from_siglip(settings: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> ClipConfig:
    """The model that a folder's `config.json` describes; arguments as of `weights.hf.config_from_hf`.

    Raises:
      UserError: it has parts that are not built here, or sizes are missing or do not fit together.
    """
    text = _TEXT_DEFAULTS | section_from_hf(settings, "text_config", where)
    vision = _VISION_DEFAULTS | section_from_hf(settings, "vision_config", where)
    if vision["num_channels"] != 3:
        raise UserError(f"{where}: its image tower reads {vision['num_channels']} channels, and images have 3")
    if not vision["vision_use_head"]:
        raise UserError(f"{where}: its image tower has no attention pooling (vision_use_head), and SigLIP's has")
    end = end_of_settings(text.get("eos_token_id"), where)
    end_id = SIGLIP_END if end in (None, _NOT_THE_END) else end
    try:
        return ClipConfig(
            text.get("projection_size") or text["hidden_size"],
            VisionConfig(
                vision["image_size"],
                vision["patch_size"],
                tower_from_hf(vision, where),
                VisionTower.SIGLIP,
                **images_from_hf(preprocessor, vision["image_size"], SIGLIP, where),
            ),
            TextConfig(
                text["vocab_size"],
                text["max_position_embeddings"],
                end_id,
                tower_from_hf(text, where),
                TextTower.SIGLIP,
            ),
            **LOGITS,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}/config.json describes no model: {error}") from error


def config_to_siglip(config: ClipConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model; arguments as of `weights.hf.config_to_hf`.

    Raises:
      UserError: `SiglipModel` has no such model.
    """
    text, vision = config.text, config.vision
    parts = (vision.tower.value, text.tower.value, config.loss)
    if parts != (VisionTower.SIGLIP.value, TextTower.SIGLIP.value, Loss.SIGMOID):
        raise UserError(
            f"Hugging Face has models with SigLIP's towers and sigmoid loss, or with neither, not with '{parts[0]}', "
            f"'{parts[1]}' and '{parts[2]}': this model cannot be saved for it"
        )
    if text.end_id == _NOT_THE_END:
        raise UserError(f"SiglipModel's folders name {_NOT_THE_END} as the end-of-text token where it is {SIGLIP_END}")
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": dtype,
        "initializer_factor": 1.0,
        "text_config": {
            "model_type": "siglip_text_model",
            **tower_to_hf(text.transformer),
            "projection_size": config.embed_dim,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "eos_token_id": text.end_id,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **tower_to_hf(vision.vit),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
        },
    }
