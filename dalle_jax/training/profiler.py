"""A trace of some steps for TensorBoard's profiler."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Generator

import jax
from etils import epath

from dalle_jax.storage import is_remote, upload, walk


@contextlib.contextmanager
def profiler(directory: epath.Path, steps: tuple[int, int] | None) -> Generator[Callable[[int], None], None, None]:
    """A function to call before each step, which traces the steps from the first to the second of `steps`."""
    running = False
    local = tempfile.mkdtemp() if steps is not None and is_remote(directory) else os.fspath(directory)

    def stop() -> None:
        nonlocal running
        running = False
        jax.profiler.stop_trace()
        if local != os.fspath(directory):
            for name in walk(local):
                upload(os.path.join(local, name), os.fspath(directory / name))

    def before(step: int) -> None:
        nonlocal running
        if steps is not None and step == steps[0]:
            jax.profiler.start_trace(local)
            running = True
        elif steps is not None and running and step > steps[1]:
            stop()

    try:
        yield before
    finally:
        if running:
            stop()
