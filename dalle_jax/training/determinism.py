"""What XLA must be told so that the same program gives the same bits again."""

import os

_GPU_FLAG = "--xla_gpu_deterministic_ops=true"


def set_deterministic() -> None:
    """Asks XLA for deterministic operations on GPUs; call it before anything touches a device.

    The flag excludes operations that add in the order in which threads arrive, and turns autotuning off, which
    could pick another kernel on every start. CPUs and TPUs repeat themselves as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_GPU_FLAG}".strip()
