"""Signs of life of a run whose first stage keeps no record yet: it reads its data and trains its tokenizer.

That may take long, of thousands of tars for the first time, and comes before the folder of the run is made.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from etils import epath

from dalle_jax.config import read_json, write_json
from dalle_jax.errors import UserError
from dalle_jax.storage import is_remote
from dalle_jax.training.parallel.processes import is_primary
from dalle_jax.training.telemetry.heartbeat import BEAT_EVERY

FILE = "starting.json"


@dataclasses.dataclass(frozen=True)
class Starting:
    """What `starting.json` says. Times are Unix times in seconds."""

    began: float
    beat: float
    """Last sign of life: when this was written."""
    ready: bool
    """Whether the rest is the stages', which keep records of their own."""


@contextlib.contextmanager
def starting(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Keeps `W/starting.json` while it is open, written anew every ten seconds until the run says that it is ready.

    Process 0 alone writes. Where the run is refused its folder is left as it was found, or not at all, so that the
    corrected command begins it.
    """
    if not is_primary():
        yield lambda: None
        return
    made = [] if is_remote(workdir) else [path for path in (workdir, *workdir.parents) if not path.exists()]
    began, ended = time.time(), threading.Event()

    def beat() -> None:
        while True:
            _write(workdir, began, ready=False)
            if ended.wait(BEAT_EVERY):
                return

    thread = threading.Thread(target=beat, name="starting", daemon=True)
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join(timeout=60)

    def ready() -> None:
        stop()
        _write(workdir, began, ready=True)

    try:
        yield ready
    finally:
        stop()
        _remove(workdir / FILE, made)


def _write(workdir: epath.Path, began: float, ready: bool) -> None:
    # A run does not end for want of a heartbeat, as with the record of a stage; a bucket raises what its library does.
    with contextlib.suppress(Exception):
        write_json(workdir / FILE, Starting(began, time.time(), ready))


def _remove(file: epath.Path, made: list[epath.Path]) -> None:
    with contextlib.suppress(Exception):
        file.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()  # fails where something else lies in it


def read_starting(workdir: epath.Path) -> Starting | None:
    """The start that is under way, or was; None: there is no record of one."""
    try:
        return Starting(**read_json(workdir / FILE))
    except (UserError, TypeError):
        return None
