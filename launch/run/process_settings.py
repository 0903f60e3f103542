"""What a script sets for all of its process. The packages set nothing, since they are guests in other people's."""

import logging
import os
import resource
import sys

import fsspec

from dalle_jax.training.parallel.determinism import FLAG
from launch.run.orbax_logging import quiet_orbax

OURS = ("dalle_jax", "clip_jax")
"""The packages, and so the loggers above those of their modules."""


def set_up_process() -> None:
    """Shows what the packages say, reads buckets anew, allows many open files and drops Orbax's noise.

    Calling it again changes nothing.
    """
    show_logs()
    keep_no_listings()
    allow_open_files()
    quiet_orbax()


class _Lines(logging.Formatter):
    """`warning: what it is`; what merely tells how it goes stands alone."""

    def format(self, record: logging.LogRecord) -> str:
        said = super().format(record)
        return said if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {said}"


def show_logs() -> None:
    """Warnings of everybody and reports of the packages go to stderr, a line each."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        # What a library that logged to the root at import left there would say everything twice.
        if type(handler) is logging.StreamHandler and not isinstance(handler.formatter, _Lines):
            root.removeHandler(handler)
    if not any(isinstance(handler.formatter, _Lines) for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Lines())
        root.addHandler(handler)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def keep_no_listings() -> None:
    """Other processes write into a bucket too: a listing that is kept would hide their files."""
    for protocol in ("gcs", "gs"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)


def allow_open_files() -> None:
    """As many as the system lets this process have; each shard of encoded images that is read stays open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def set_deterministic() -> None:
    """Asks XLA for deterministic operations on GPUs; call it before anything touches a device."""
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=true".strip()
