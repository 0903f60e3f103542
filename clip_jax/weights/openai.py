"""OpenAI's names of CLIP's parameters, which open_clip shares and adds to, and what a bare file says of the model."""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping

from clip_jax.config import ClipConfig, TextConfig, TextTower, VisionConfig, VisionTower, tower_config
from clip_jax.tokenizers.text_ends import end_at_highest
from clip_jax.weights.resnet import deduce_resnet, is_resnet, resnet_names
from clip_jax.weights.siglip import LOGITS, PIXELS, SIGLIP_END
from clip_jax.weights.timm import NORM_EPSILON, deduce_timm, is_timm, siglip_head_dim, timm_names
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.transformer import TransformerConfig
from dalle_jax.weights import Names, Tensor

_log = logging.getLogger(__name__)

OFFICIAL = {
    "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101.pt": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4.pt": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16.pt": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64.pt": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14.pt": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L-14-336px.pt": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
"""SHA-256 of OpenAI's files."""

IGNORED = ("input_resolution", "context_length", "vocab_size", "*attn_mask", "*.num_batches_tracked")
"""Tensors beside the parameters: sizes that the archives carry, constants, counters."""

_HEAD_DIM = 64

_Shape = Callable[[str, int], tuple[int, ...]]
"""Of a tensor with a number of axes; raises `UserError` where there is none."""


def check_official(path: str) -> None:
    """Compares a file that is called like one of OpenAI's with its SHA-256, and warns where it is another."""
    if os.path.basename(path) in OFFICIAL:
        about = os.stat(path)
        _compare(path, about.st_size, about.st_mtime_ns)


@functools.cache
def _compare(path: str, size: int, changed: int) -> None:
    """Once for a file as long as it stays as it is: fine-tuning opens it several times."""
    del size, changed
    name = os.path.basename(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != OFFICIAL[name]:
        _log.warning(
            f"{path} is called like OpenAI's file and is not that file (its SHA-256 is {found[:12]}..., "
            f"OpenAI's {OFFICIAL[name][:12]}...): fetch it again, or rename it if it is your own"
        )


def openai_names(config: ClipConfig, *, text_prefix: str = "") -> Names:
    """OpenAI's tensors of every variable of a model; open_clip's of a SigLIP.

    Args:
      config: of the model.
      text_prefix: before the names of the text tower; open_clip has models with `text.`.
    """
    names, vision = Names(), config.vision
    names.array("params/logit_scale", "logit_scale", ())
    if config.objective.has_bias:
        names.array("params/logit_bias", "logit_bias", ())
    _text(names, config, text_prefix)
    if vision.tower is VisionTower.SIGLIP:
        timm_names(names, vision)
    elif vision.tower is VisionTower.RESNET:
        resnet_names(names, vision)
        names.linear("params/vision_projection", "visual.attnpool.c_proj", (vision.embed_dim, config.embed_dim))
    else:
        _vit(names, vision)
        names.array("params/vision_projection/kernel", "visual.proj", (vision.embed_dim, config.embed_dim))
    return names


def _text(names: Names, config: ClipConfig, prefix: str) -> None:
    ours, text = "params/text", config.text
    width = text.transformer.embed_dim
    names.array(f"{ours}/token_embedding/embedding", f"{prefix}token_embedding.weight", (text.vocab_size, width))
    names.array(f"{ours}/position_embedding", f"{prefix}positional_embedding", (text.context_length, width))
    _transformer(names, f"{ours}/transformer", f"{prefix}transformer", text.transformer)
    names.norm(f"{ours}/norm_final", f"{prefix}ln_final", width)
    ours, theirs = "params/text_projection", f"{prefix}text_projection"
    if text.tower is TextTower.SIGLIP:
        names.linear(ours, theirs, (width, config.embed_dim))
    else:
        names.array(f"{ours}/kernel", theirs, (width, config.embed_dim))


def _vit(names: Names, config: VisionConfig) -> None:
    ours, width, side = "params/vision", config.embed_dim, config.patch_size
    # Patches are flattened as (row, column, channel).
    names.array(f"{ours}/patch_embedding/kernel", "visual.conv1.weight", (width, 3, side, side), (2, 3, 1, 0))
    names.array(f"{ours}/class_embedding", "visual.class_embedding", (width,))
    names.array(f"{ours}/position_embedding", "visual.positional_embedding", (config.num_patches + 1, width))
    names.norm(f"{ours}/norm_pre", "visual.ln_pre", width)
    _transformer(names, f"{ours}/transformer", "visual.transformer", config.vit)
    names.norm(f"{ours}/norm_post", "visual.ln_post", width)


def _transformer(names: Names, ours: str, theirs: str, config: TransformerConfig) -> None:
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    for i in range(config.num_layers):
        block, at, layer = f"{theirs}.resblocks.{i}", (i,), f"{ours}/group/layer_0"
        names.norm(f"{layer}/norm_1", f"{block}.ln_1", width, at)
        names.norm(f"{layer}/norm_2", f"{block}.ln_2", width, at)
        # Rows of the weight are those of q, then k, then v.
        attention = f"{layer}/attention"
        names.array(f"{attention}/qkv_kernel", f"{block}.attn.in_proj_weight", (3 * inner, width), (1, 0), at)
        names.array(f"{attention}/qkv_bias", f"{block}.attn.in_proj_bias", (3 * inner,), at=at)
        names.linear(f"{attention}/out", f"{block}.attn.out_proj", (inner, width), at)
        names.linear(f"{layer}/mlp/in", f"{block}.mlp.c_fc", (width, config.mlp_dim), at)
        names.linear(f"{layer}/mlp/out", f"{block}.mlp.c_proj", (config.mlp_dim, width), at)


_SIGLIP_TEXT = "text_projection.weight"
"""There is SigLIP's text tower where this is, after the prefix."""


def default_activation(tensors: Mapping[str, Tensor]) -> tuple[Activation, str]:
    """What is taken of a bare file where nothing is said, and why."""
    if is_timm(tensors):
        return Activation.GELU, (
            "GELU is taken, as open_clip's first SigLIPs have it; what was trained here and SigLIP 2 have "
            "activation='gelu_tanh'"
        )
    return Activation.QUICK_GELU, (
        "QuickGELU is taken, as OpenAI's models have it; open_clip's have activation='gelu' where '-quickgelu' is not "
        "in their name"
    )


def text_prefix(tensors: Mapping[str, Tensor]) -> str:
    """What stands before the names of the text tower."""
    return "text." if "text.token_embedding.weight" in tensors else ""


def deduce_config(tensors: Mapping[str, Tensor], where: str, activation: Activation) -> ClipConfig:
    """The model that a bare state dict is of, from shapes, as OpenAI's code deduces it.

    Heads are 64 wide, as in all of OpenAI's models, and a sixteenth of the width in open_clip's wider image towers. The
    end-of-text token is the highest id of a caption, of a SigLIP 1.

    Raises:
      UserError: the names that tell the sizes are not there, or their shapes are those of no model.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            known = ", ".join(list(tensors)[:3])
            before = [other.removesuffix(name) for other in tensors if other.endswith(f".{name}")]
            if before and not before[0].startswith("text_model."):
                told = " or ".join(f"prefix='{prefix}'" for prefix in before[:5])
                raise UserError(f"{where} has '{name}' behind another name: choose the model in it with {told}")
            raise UserError(
                f"{where} has no '{name}': its names ({known}, ...) are not those of OpenAI's or open_clip's CLIP; "
                "of a Hugging Face model, give the folder with its config.json"
            )
        if len(tensors[name].shape) != rank or 0 in tensors[name].shape:
            raise UserError(
                f"{where}: '{name}' is {tensors[name].shape} and should have {rank} axes, none of them empty"
            )
        return tensors[name].shape

    try:
        text, embed_dim = _deduce_text(tensors, activation, shape, where)
        vision = _deduce_vision(tensors, activation, shape, where)
        return ClipConfig(embed_dim, vision, text, **(LOGITS if "logit_bias" in tensors else {}))
    except ValueError as error:
        raise UserError(f"{where} describes no model: {error}") from error


def _deduce_vision(tensors: Mapping[str, Tensor], activation: Activation, shape: _Shape, where: str) -> VisionConfig:
    if is_timm(tensors):
        return dataclasses.replace(deduce_timm(tensors, activation, shape), **PIXELS)
    if is_resnet(tensors):
        return deduce_resnet(tensors, shape)
    width, _, patch_size, _ = shape("visual.conv1.weight", 4)
    positions, _ = shape("visual.positional_embedding", 2)
    transformer = _deduce_tower(tensors, "visual.transformer", width, activation, shape, where)
    return VisionConfig(patch_size * round((positions - 1) ** 0.5), patch_size, transformer)


def _deduce_text(
    tensors: Mapping[str, Tensor], activation: Activation, shape: _Shape, where: str
) -> tuple[TextConfig, int]:
    """The text tower, and the width of the shared space."""
    prefix = text_prefix(tensors)
    vocab_size, width = shape(f"{prefix}token_embedding.weight", 2)
    context_length, _ = shape(f"{prefix}positional_embedding", 2)
    blocks = _deduce_tower(tensors, f"{prefix}transformer", width, activation, shape, where)
    if f"{prefix}{_SIGLIP_TEXT}" not in tensors:
        _, embed_dim = shape(f"{prefix}text_projection", 2)
        end = end_at_highest(vocab_size, None)
        return TextConfig(vocab_size, context_length, transformer=blocks, **end), embed_dim
    embed_dim, _ = shape(f"{prefix}{_SIGLIP_TEXT}", 2)
    blocks = tower_config(
        blocks.num_layers,
        width,
        siglip_head_dim(width),
        mlp_dim=blocks.mlp_dim,
        activation=activation,
        norm_epsilon=NORM_EPSILON,
    )
    return TextConfig(vocab_size, context_length, SIGLIP_END, blocks, TextTower.SIGLIP), embed_dim


def _deduce_tower(
    tensors: Iterable[str],
    theirs: str,
    width: int,
    activation: Activation,
    shape: _Shape,
    where: str,
) -> TransformerConfig:
    prefix, suffix = f"{theirs}.resblocks.", ".mlp.c_fc.weight"
    layers = [name for name in tensors if name.startswith(prefix) and name.endswith(suffix)]
    if not layers:
        raise UserError(f"{where} has no '{prefix}0{suffix}': it is not a CLIP of two transformers")
    head_dim = max(_HEAD_DIM, width // 16) if theirs.startswith("visual") else _HEAD_DIM
    if width % head_dim:
        raise UserError(f"{where}: '{theirs}' is {width} wide, which does not divide into heads of {head_dim}")
    mlp_dim, _ = shape(layers[0], 2)
    return tower_config(len(layers), width, head_dim, mlp_dim=mlp_dim, activation=activation)
