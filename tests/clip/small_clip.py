"""A CLIP small enough to be written in every layout of the others, and what is asked of it when it comes back."""

import numpy as np

from clip_jax import ClipConfig, TextConfig, VisionConfig, tower_config
from dalle_jax.training.trees import named_leaves

CONFIG = ClipConfig(
    8,
    VisionConfig(32, 16, tower_config(3, 64, mlp_dim=96)),
    TextConfig(100, 12, 99, tower_config(2, 128)),
)


def tokenize(texts):
    return np.asarray([[98, *map(int, text.split()), 99, *[0] * 12][:12] for text in texts], np.int32)


def same(clip, variables):
    found, wanted = named_leaves(clip.variables), named_leaves(variables)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
