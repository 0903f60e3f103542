"""What XLA must be told so that the same program gives the same bits again."""

import os
import sys

_FLAG = "--xla_gpu_deterministic_ops"


def set_deterministic() -> None:
    """Asks XLA for deterministic operations on GPUs; call it before anything touches a device.

    The flag excludes operations that add in the order in which threads arrive, and turns autotuning off, which
    could pick another kernel on every start. CPUs and TPUs repeat themselves as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=true".strip()


def warn_unless_deterministic(platform: str) -> None:
    """Says so where a run on `platform` (`cpu`, `gpu`, `tpu`) could not be repeated bit for bit."""
    if platform == "gpu" and f"{_FLAG}=true" not in os.environ.get("XLA_FLAGS", ""):
        print(f"warning: {_FLAG}=true is not in XLA_FLAGS: a resumed run will differ in its last bits from one that "
              "was not interrupted (deterministic=False silences this)", file=sys.stderr, flush=True)  # fmt: skip
