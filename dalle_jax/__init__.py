"""DALL·E in JAX/Flax: an image codec, an autoregressive decoder over text and image tokens, and ranked sampling.

dalle = dalle_jax.load(workdir)
samples = dalle.generate("a small red circle", num_samples=512, keep=32, score_fn=clip.score)
"""

import importlib
from typing import TYPE_CHECKING

from dalle_jax import moved_modules
from dalle_jax.errors import UserError

if TYPE_CHECKING:
    from dalle_jax.codec import load_codec, save_codec
    from dalle_jax.pipeline import Dalle, Samples, load

__all__ = ["Dalle", "Samples", "UserError", "load", "load_codec", "save_codec"]

_FROM = dict.fromkeys(("Dalle", "Samples", "load"), "pipeline") | dict.fromkeys(("load_codec", "save_codec"), "codec")

moved_modules.install()


def __getattr__(name: str):
    # On first use: whoever needs a layer or a data source alone does not import the models and their libraries.
    if name in _FROM:
        return getattr(importlib.import_module(f"dalle_jax.{_FROM[name]}"), name)
    raise AttributeError(f"module 'dalle_jax' has no attribute '{name}'")
