"""What a row of the benchmark is: a workload of ours, and the same one of a peer."""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Workload:
    """Something that is run again and again. Made when its row is timed, so that only one lies in memory."""

    run: Callable[[], Any]
    """Runs once; JAX arrays that it returns are waited for."""
    flops: float = 0.0
    """Useful floating-point operations of one run, by formula; 0: not the measure here."""
    bytes: float = 0.0
    """What one run must read from memory and write to it at the least, by formula; 0: not the measure here."""
    items: float = 0.0
    """What comes out of one run, in the row's `unit`."""
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    """What else there is to tell, by name; a run may change it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the benchmark."""

    name: str
    shape: str
    unit: str
    """Of what comes out: `images`, `tokens`."""
    make: Callable[[], Workload]
    make_peer: Callable[[], Workload] | None = None
    """Imports torch and the peer; called with `--peer` alone, in another process."""
    peer: str = ""
    """Whom it is compared with."""
    reach: float | None = None
    """The ratio to the peer that is aimed at: of useful FLOP/s where both count them, else of items a second."""
    gpu: bool = False
    """Sized for a GPU and left out elsewhere, and the other way round."""


def size_of(tree: Any) -> float:
    """Bytes of all arrays of a tree."""
    return float(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))


def product_dtype() -> str:
    """Of matrix products: bfloat16 gains nothing on CPUs."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def import_torch() -> Any:
    """Torch, on as many threads as XLA has, with a torchvision that the peers can import.

    Raises:
      ImportError: where it is not installed.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # A torchvision built for CUDA loads beside a CPU torch once the two operators that it extends are declared.
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    return torch


_declared: list[Any] = []  # a library's operators are gone with it
