"""What tests of weights share: a small CLIP, and torchvision for the peers."""

import sys

import jax
import numpy as np
import pytest

from clip_jax import Clip
from clip_jax.weights.openai import openai_names
from clip_jax.weights.opening import abstract_variables
from dalle_jax.training.trees import unbox
from dalle_jax.weights import write_tensors
from tests.clip.small_clip import CONFIG, tokenize


@pytest.fixture(scope="session")
def torchvision():
    """The wheel of torchvision is a CUDA build, which loads beside a CPU torch once two operators are declared."""
    torch = pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield library  # which forgets the operators when it is forgotten
    else:
        yield None


@pytest.fixture(scope="session")
def variables():
    """Random everywhere, so that no two parameters and no two layers are alike."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), unbox(abstract_variables(CONFIG)))


@pytest.fixture(scope="session")
def clip(variables):
    return Clip(CONFIG, variables["params"], tokenize)


@pytest.fixture(scope="session")
def openai(variables):
    """The same with OpenAI's names."""
    return write_tensors(openai_names(CONFIG), variables)
