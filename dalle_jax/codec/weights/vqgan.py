"""VQGAN checkpoints of taming-transformers, Lightning's files among them, and their names."""

import os
import re
from typing import Any

from etils import epath

from dalle_jax.codec.vqgan import VqganConfig, abstract_params
from dalle_jax.errors import UserError
from dalle_jax.training.trees import unbox
from dalle_jax.weights import (
    Names,
    Tensor,
    check_tensors,
    conv_names,
    read_params,
    read_tensors,
    write_safetensors,
    write_tensors,
)

IGNORED = ("loss.*", "model_ema.*")
"""Of training: discriminator, perceptual loss, averages."""


def load_vqgan(path: epath.PathLike, *, key: str | None = None, prefix: str | None = None) -> tuple[VqganConfig, Any]:
    """Config and parameters of a VQGAN, float32 on the host.

    Args:
      path: a `.ckpt`, `.pt`, `.bin` or `.safetensors` file; the sizes follow from its shapes.
      key: see `dalle_jax.weights.read_tensors`.
      prefix: likewise.

    Raises:
      UserError: the file is damaged or hostile, or its parameters are missing, unknown or of a wrong shape.
    """
    where = os.fspath(path)
    tensors = read_tensors(path, key=key, prefix=prefix)
    config = _deduce_config(tensors, where)
    shapes = unbox(abstract_params(config))
    names = vqgan_names(shapes)
    check_tensors(names, tensors, where, IGNORED)
    return config, read_params(names, shapes, tensors)


def save_vqgan(config: VqganConfig, params: Any, folder: epath.PathLike) -> None:
    """Writes `vqgan.safetensors` with the original's names."""
    os.makedirs(folder, exist_ok=True)
    tensors = write_tensors(vqgan_names(unbox(abstract_params(config))), params)
    write_safetensors(os.path.join(os.fspath(folder), "vqgan.safetensors"), tensors)


def vqgan_names(shapes: Any) -> Names:
    """The original's names: ours with numbers of levels and of their blocks as parts of their own."""

    def rename(path: str) -> str:
        if path == "codebook":
            return "quantize.embedding.weight"
        *modules, leaf = path.split("/")
        name = ".".join([*modules, {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]])
        name = re.sub(r"\b(down|up)_(\d+)\.(block|attn)_(\d+)\b", r"\1.\2.\3.\4", name)
        return re.sub(r"\b(down|up)_(\d+)\b", r"\1.\2", name)

    return conv_names(shapes, rename)


def _deduce_config(tensors: dict[str, Tensor], where: str) -> VqganConfig:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != rank:
            raise UserError(f"{where} holds no VQGAN: '{name}' is missing or has not {rank} axes")
        return tensors[name].shape

    def numbers(pattern: str) -> list[int]:
        matches = (re.match(pattern, name) for name in tensors)
        return sorted({int(match[1]) for match in matches if match})

    hidden_dim = shape("encoder.conv_in.weight", 4)[0]
    levels = numbers(r"encoder\.down\.(\d+)\.block\.")
    widths = [shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels]
    codebook_size, code_dim = shape("quantize.embedding.weight", 2)
    try:
        return VqganConfig(
            codebook_size=codebook_size,
            hidden_dim=hidden_dim,
            multipliers=tuple(width // hidden_dim for width in widths),
            blocks_per_level=len(numbers(r"encoder\.down\.0\.block\.(\d+)\.")),
            attention_levels=tuple(numbers(r"encoder\.down\.(\d+)\.attn\.")),
            latent_dim=shape("encoder.conv_out.weight", 4)[0],
            code_dim=code_dim,
        )
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where} holds no VQGAN that is built here: {error}") from error
