"""SigLIP's image tower as open_clip has it: a model of timm's, chosen by its name, with timm's parameters."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax.config import VisionConfig, VisionTower, tower_config
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.transformer import TransformerConfig
from dalle_jax.weights import Names

NORM_EPSILON = 1e-6
"""Of both towers."""

_TRUNK = "visual.trunk"
_PATCHES = f"{_TRUNK}.patch_embed.proj.weight"
"""There is a tower of timm's where this is."""

_BASE, _LARGE, _SO400M, _GIANT = (12, 768, 12, 3072), (24, 1024, 16, 4096), (27, 1152, 16, 4304), (40, 1536, 16, 6144)
"""Layers, width, heads, MLP."""

_ROWS: Sequence[tuple[str, tuple[int, int, int, int], int, Activation, tuple[int, ...]]] = (
    ("base", _BASE, 16, Activation.GELU, (224, 256, 384, 512)),
    ("base", _BASE, 32, Activation.GELU_TANH, (256,)),
    ("large", _LARGE, 16, Activation.GELU, (256, 384)),
    ("large", _LARGE, 16, Activation.GELU_TANH, (512,)),
    ("so400m", _SO400M, 14, Activation.GELU, (224, 378, 384)),
    ("so400m", _SO400M, 16, Activation.GELU_TANH, (256, 384, 512)),
    ("giantopt", _GIANT, 16, Activation.GELU_TANH, (256, 384)),
)

_ACTIVATIONS = {Activation.GELU: "none", Activation.GELU_TANH: "tanh"}
"""By PyTorch's word for how `GELU` is approximated."""


def siglip_head_dim(width: int) -> int:
    """Of a published SigLIP's towers, by their width."""
    return {1152: 72, 1536: 96}.get(width, 64)


def _tower(sizes: tuple[int, int, int, int], patch_size: int, activation: Activation, image_size: int) -> VisionConfig:
    layers, width, heads, mlp_dim = sizes
    blocks = tower_config(
        layers, width, width // heads, mlp_dim=mlp_dim, activation=activation, norm_epsilon=NORM_EPSILON
    )
    return VisionConfig(image_size, patch_size, blocks, VisionTower.SIGLIP)


TOWERS = {
    f"vit_{name}_patch{patch_size}_siglip_{image_size}": _tower(sizes, patch_size, activation, image_size)
    for name, sizes, patch_size, activation, image_sizes in _ROWS
    for image_size in image_sizes
}
"""By timm's name."""


def is_timm(tensors: Mapping[str, Any]) -> bool:
    """Whether the image tower behind some names is timm's."""
    return _PATCHES in tensors


def timm_names(names: Names, config: VisionConfig) -> None:
    """Adds the tensors of the image tower."""
    ours, sizes, side = "params/vision", config.vit, config.patch_size
    width = sizes.embed_dim
    names.array(f"{ours}/patch_embedding/kernel", _PATCHES, (width, 3, side, side), (2, 3, 1, 0))
    names.array(f"{ours}/patch_embedding/bias", f"{_TRUNK}.patch_embed.proj.bias", (width,))
    names.array(f"{ours}/position_embedding", f"{_TRUNK}.pos_embed", (1, config.num_patches, width))
    for i in range(sizes.num_layers):
        _block(names, f"{ours}/transformer/group/layer_0", f"{_TRUNK}.blocks.{i}", sizes, i)
    names.norm(f"{ours}/norm_post", f"{_TRUNK}.norm", width)
    _pooling(names, f"{ours}/pooling", f"{_TRUNK}.attn_pool", sizes)


def _block(names: Names, ours: str, theirs: str, sizes: TransformerConfig, i: int) -> None:
    width, inner, at = sizes.embed_dim, sizes.num_heads * sizes.head_dim, (i,)
    names.norm(f"{ours}/norm_1", f"{theirs}.norm1", width, at)
    names.norm(f"{ours}/norm_2", f"{theirs}.norm2", width, at)
    # Rows of the weight are those of q, then k, then v.
    names.array(f"{ours}/attention/qkv_kernel", f"{theirs}.attn.qkv.weight", (3 * inner, width), (1, 0), at)
    names.array(f"{ours}/attention/qkv_bias", f"{theirs}.attn.qkv.bias", (3 * inner,), at=at)
    names.linear(f"{ours}/attention/out", f"{theirs}.attn.proj", (inner, width), at)
    names.linear(f"{ours}/mlp/in", f"{theirs}.mlp.fc1", (width, sizes.mlp_dim), at)
    names.linear(f"{ours}/mlp/out", f"{theirs}.mlp.fc2", (sizes.mlp_dim, width), at)


def _pooling(names: Names, ours: str, theirs: str, sizes: TransformerConfig) -> None:
    width, inner = sizes.embed_dim, sizes.num_heads * sizes.head_dim
    names.array(f"{ours}/probe", f"{theirs}.latent", (1, 1, width))
    for part, place in (("q", slice(0, 1)), ("kv", slice(1, 3))):
        rows = (place.stop - place.start) * inner
        names.array(f"{ours}/qkv_kernel", f"{theirs}.{part}.weight", (rows, width), (1, 0), (None, place))
        names.array(f"{ours}/qkv_bias", f"{theirs}.{part}.bias", (rows,), at=(place,))
    names.linear(f"{ours}/out", f"{theirs}.proj", (inner, width))
    names.norm(f"{ours}/norm", f"{theirs}.norm", width)
    names.linear(f"{ours}/mlp/in", f"{theirs}.mlp.fc1", (width, sizes.mlp_dim))
    names.linear(f"{ours}/mlp/out", f"{theirs}.mlp.fc2", (sizes.mlp_dim, width))


def deduce_timm(
    tensors: Mapping[str, Any], activation: Activation, shape: Callable[[str, int], tuple[int, ...]]
) -> VisionConfig:
    """The image tower of a bare state dict; where patches leave a rest of the image, one without a rest is taken.

    Args:
      tensors: names in the file.
      activation: of the MLPs.
      shape: of a tensor with a number of axes; raises `UserError` where there is none.

    Raises:
      ValueError: the sizes are those of no model.
    """
    width, _, patch_size, _ = shape(_PATCHES, 4)
    _, positions, _ = shape(f"{_TRUNK}.pos_embed", 3)
    shape(f"{_TRUNK}.attn_pool.latent", 3)
    mlp_dim, _ = shape(f"{_TRUNK}.blocks.0.mlp.fc1.weight", 2)
    layers = next(i for i in itertools.count(1) if f"{_TRUNK}.blocks.{i}.mlp.fc1.weight" not in tensors)
    changes = {"mlp_dim": mlp_dim, "activation": activation, "norm_epsilon": NORM_EPSILON}
    blocks = tower_config(layers, width, siglip_head_dim(width), **changes)
    return VisionConfig(patch_size * round(positions**0.5), patch_size, blocks, VisionTower.SIGLIP)


def timm_from_open_clip(section: Mapping[str, Any]) -> VisionConfig:
    """The image tower that a `vision_cfg` with the name of one of `TOWERS` describes.

    Raises:
      ValueError: it reads images of another size than the tower does.
    """
    name, size = section["timm_model_name"], section["image_size"]
    vision = TOWERS[name]
    if size not in (vision.image_size, [vision.image_size] * 2):
        raise ValueError(f"images of {size}, and timm's {name} reads {vision.image_size}")
    approximate = (section.get("act_kwargs") or {}).get("approximate")
    for activation, theirs in _ACTIVATIONS.items():
        if theirs == approximate:
            return dataclasses.replace(vision, transformer=dataclasses.replace(vision.vit, activation=activation))
    return vision


def timm_to_open_clip(config: VisionConfig) -> dict[str, Any]:
    """The `vision_cfg` of an image tower.

    timm's names decide for GELU or its approximation. Where the model has the other one, the file says so; open_clip
    passes over that (`other_activation` is for a line that tells), and what is read here again is the same.

    Raises:
      UserError: timm has no such tower.
    """
    name = _name(config)
    section: dict[str, Any] = {
        "image_size": config.image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    if other_activation(config) is not None:
        section["act_kwargs"] = {"approximate": _ACTIVATIONS[config.vit.activation]}
    return section


def other_activation(config: VisionConfig) -> Activation | None:
    """What open_clip computes in an image tower that has another activation; None: the same."""
    theirs = TOWERS[_name(config)].vit.activation
    return None if theirs is config.vit.activation else theirs


def _name(config: VisionConfig) -> str:
    found = [name for name, tower in TOWERS.items() if _sizes(tower) == _sizes(config)]
    if not found or config.vit.activation not in _ACTIVATIONS:
        sizes = config.vit
        raise UserError(
            f"open_clip takes SigLIP's image towers from timm, which has none of {sizes.num_layers} layers, width "
            f"{sizes.embed_dim}, {sizes.num_heads} heads, MLP {sizes.mlp_dim}, '{sizes.activation.value}', patches of "
            f"{config.patch_size} and images of {config.image_size} (it has {', '.join(TOWERS)}): save with "
            "format='hf'"
        )
    return found[0]


def _sizes(config: VisionConfig) -> tuple[int | float, ...]:
    blocks = config.vit
    layers = (blocks.num_layers, blocks.embed_dim, blocks.num_heads, blocks.head_dim, blocks.mlp_dim)
    return (config.image_size, config.patch_size, *layers, blocks.norm_epsilon)
