"""Whether XLA was told what makes the same program give the same bits again."""

import logging
import os

FLAG = "--xla_gpu_deterministic_ops"
"""Excludes operations that add in the order in which threads arrive, and turns autotuning off, which could pick another
kernel on every start. CPUs and TPUs repeat themselves as they are."""

_log = logging.getLogger(__name__)


def warn_unless_deterministic(platform: str) -> None:
    """Says so where a run on `platform` (`cpu`, `gpu`, `tpu`) could not be repeated bit for bit."""
    if platform == "gpu" and f"{FLAG}=true" not in os.environ.get("XLA_FLAGS", ""):
        _log.warning(
            "%s=true is not in XLA_FLAGS: a resumed run will differ in its last bits from one that was not interrupted "
            "(deterministic=False silences this)",
            FLAG,
        )
