"""What the comparisons with the peers share."""

import sys

import pytest


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
