"""Files of weights that other programs wrote, read without those programs; and written for them.

Knows no model: what tensors mean is said beside each model, as a table from its parameters to their names.
"""

from dalle_jax.weights.reading import find_file, read_settings, read_tensors
from dalle_jax.weights.tensors import Tensor
from dalle_jax.weights.torch_files import is_torchscript

__all__ = ["Tensor", "find_file", "is_torchscript", "read_settings", "read_tensors"]
