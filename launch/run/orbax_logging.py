"""Keeps Orbax's and TensorStore's threads from printing what is raised, and told once, where a save is waited for."""

import logging
import sys
from collections.abc import Callable
from typing import Any


def quiet_orbax() -> None:
    """Drops Orbax's log records, and the errors of TensorStore's threads that find nobody listening any more.

    When one of several writes fails, as on a full disk, Orbax raises that error and closes its event loop. The writes
    that end after it report to the closed loop, each on a thread of TensorStore, which can only hand the `RuntimeError`
    to `sys.unraisablehook`. All else goes to the hook that was there. Calling it again changes nothing.
    """
    logging.getLogger("absl").addFilter(_not_from_orbax)  # A filter that is there already is not added again.
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


class _Hook:
    """`sys.unraisablehook` without reports to closed event loops."""

    def __init__(self, before: Callable[[Any], Any]):
        self.before = before

    def __call__(self, unraisable: Any) -> None:
        if not _unheard(unraisable):
            self.before(unraisable)


def _unheard(unraisable: Any) -> bool:
    """Whether C++ code that belongs to no Python object called straight into an asyncio loop that is closed."""
    if not isinstance(unraisable.exc_value, RuntimeError) or str(unraisable.exc_value) != "Event loop is closed":
        return False
    traceback = unraisable.exc_traceback
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") != "asyncio.base_events":
            return False
        traceback = traceback.tb_next
    return unraisable.object is None and unraisable.err_msg is None
