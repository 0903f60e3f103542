"""Hugging Face's Flax models: their parameters by the names, and in the layout, of the PyTorch models."""

import dataclasses
from collections.abc import Mapping

from dalle_jax.weights import Tensor
from dalle_jax.weights.tensors import Held

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
"""Of a kernel, by its rank: PyTorch has the output first."""


def from_flax(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by PyTorch's names; those of a file that is PyTorch's as they are."""
    if not any("/" in name for name in tensors):
        return dict(tensors)
    return {_name(name): _turned(name, tensor) for name, tensor in tensors.items()}


def _name(name: str) -> str:
    *modules, leaf = name.split("/")
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def _turned(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Held) or not name.endswith("/kernel") or tensor.numbers.ndim not in _AXES:
        return tensor
    numbers = tensor.numbers.transpose(_AXES[tensor.numbers.ndim])
    return dataclasses.replace(tensor, numbers=numbers, shape=numbers.shape)
