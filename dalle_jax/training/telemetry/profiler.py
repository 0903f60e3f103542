"""A trace of some steps for TensorBoard's profiler."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import jax
from etils import epath

from dalle_jax.storage import is_remote, upload, walk


@contextlib.contextmanager
def profiler(directory: epath.Path, steps: tuple[int, int] | None) -> Generator[Callable[[int, Any], None], None, None]:
    """A function to call before each step, with the state, which traces the steps from the first to the second.

    It waits for the devices at both ends: the host runs ahead of them.
    """
    running = False
    local = tempfile.mkdtemp() if steps is not None and is_remote(directory) else os.fspath(directory)

    def stop() -> None:
        nonlocal running
        running = False
        jax.profiler.stop_trace()
        if local != os.fspath(directory):
            for name in walk(local):
                upload(os.path.join(local, name), os.fspath(directory / name))

    def before(step: int, state: Any) -> None:
        nonlocal running
        if steps is not None and step == steps[0]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(local)
            running = True
        elif steps is not None and running and step > steps[1]:
            jax.block_until_ready(state)
            stop()

    try:
        yield before
    finally:
        if running:
            stop()
