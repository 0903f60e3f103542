"""OpenAI's discrete VAE: a folder with the encoder and the decoder, each a file of its own, and their names.

Published are `encoder.pkl` and `decoder.pkl`, pickles of whole PyTorch modules (DALL·E, App. A.1); no code of theirs is
run. `save_dvae` writes `encoder.safetensors` and `decoder.safetensors` with the same names.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from dalle_jax.codec.config import Body, CodecConfig, ConvConfig, Relaxation
from dalle_jax.codec.model import Codec
from dalle_jax.errors import UserError
from dalle_jax.training.trees import unbox
from dalle_jax.weights import (
    Names,
    Tensor,
    check_tensors,
    conv_names,
    find_file,
    read_params,
    read_tensors,
    write_safetensors,
    write_tensors,
)

PARTS = ("encoder", "decoder")


def find_dvae(folder: epath.PathLike) -> dict[str, str] | None:
    """The files of both parts in a folder; None where it has not both."""
    found = {part: find_file(os.fspath(folder), [f"{part}.safetensors", f"{part}.pkl"]) for part in PARTS}
    files = {part: path for part, path in found.items() if path is not None}
    return files if len(files) == len(PARTS) else None


def load_dvae(files: dict[str, str]) -> tuple[CodecConfig, Any]:
    """Config and parameters of a discrete VAE, float32 on the host.

    Args:
      files: of `find_dvae`.

    Raises:
      UserError: a file is damaged or hostile, or its parameters are missing, unknown or of a wrong shape.
    """
    tensors = {f"{part}.{name}": tensor for part in PARTS for name, tensor in read_tensors(files[part]).items()}
    where = os.path.dirname(files["encoder"])
    config = _deduce_config(tensors, where)
    shapes = dvae_shapes(config)
    names = dvae_names(shapes)
    check_tensors(names, tensors, where)
    return config, read_params(names, shapes, tensors)


def save_dvae(config: CodecConfig, params: Any, folder: epath.PathLike) -> None:
    """Writes a codec of the published form with OpenAI's names, `encoder.safetensors` and `decoder.safetensors`.

    Raises:
      UserError: the codec is of another form.
    """
    if config.body is not Body.CONV or config.relaxation is not Relaxation.GUMBEL:
        raise UserError(
            f"OpenAI has names for codecs of body 'conv' and relaxation 'gumbel' alone, not '{config.body.value}' and "
            f"'{config.relaxation.value}'"
        )
    tensors = write_tensors(dvae_names(dvae_shapes(config)), params)
    os.makedirs(folder, exist_ok=True)
    for part in PARTS:
        own = {name.removeprefix(f"{part}."): x for name, x in tensors.items() if name.startswith(f"{part}.")}
        write_safetensors(os.path.join(os.fspath(folder), f"{part}.safetensors"), own)


def dvae_names(shapes: Any) -> Names:
    """OpenAI's names, each with its part before it: our modules are called as theirs."""

    def rename(path: str) -> str:
        *modules, leaf = path.split("/")
        return ".".join([*modules, {"kernel": "w", "bias": "b"}[leaf]])

    return conv_names(shapes, rename)


def dvae_shapes(config: CodecConfig) -> Any:
    """Shapes and dtypes of a codec's parameters; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, config.stride, config.stride, 3), jnp.uint8)
    return unbox(jax.eval_shape(Codec(config).init, jax.random.key(0), images)["params"])


def _deduce_config(tensors: dict[str, Tensor], where: str) -> CodecConfig:
    def channels(name: str) -> int:
        if name not in tensors or len(tensors[name].shape) != 4:
            raise UserError(f"{where} holds no discrete VAE of OpenAI's: '{name}' is missing or no convolution")
        return tensors[name].shape[0]

    groups = {name.split(".")[2] for name in tensors if name.startswith("encoder.blocks.group_")}
    blocks = {name.split(".")[3] for name in tensors if name.startswith("encoder.blocks.group_1.block_")}
    try:
        conv = ConvConfig(
            hidden_dim=channels("encoder.blocks.input.w"),
            decoder_input_dim=channels("decoder.blocks.input.w"),
            num_groups=len(groups),
            blocks_per_group=len(blocks),
        )
        return CodecConfig(codebook_size=channels("encoder.blocks.output.conv.w"), conv=conv)
    except ValueError as error:
        raise UserError(f"{where} holds no discrete VAE of OpenAI's: {error}") from error
