"""Files of weights that other programs wrote, read without those programs; and written for them.

Knows no model: what tensors mean is said beside each model, as a table from its parameters to their names.
"""

from dalle_jax.weights.mapping import Names, Piece, check_tensors, conv_names, read_params, write_tensors
from dalle_jax.weights.paths import NOT_DOWNLOADED, local_path
from dalle_jax.weights.reading import find_file, read_settings, read_tensors
from dalle_jax.weights.safetensors_files import write_safetensors
from dalle_jax.weights.tensors import Tensor
from dalle_jax.weights.torch_files import is_torchscript

__all__ = [
    "NOT_DOWNLOADED",
    "Names",
    "Piece",
    "Tensor",
    "check_tensors",
    "conv_names",
    "find_file",
    "is_torchscript",
    "local_path",
    "read_params",
    "read_settings",
    "read_tensors",
    "write_safetensors",
    "write_tensors",
]
