"""Expected mistakes: one exception type, printed as one line."""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

PREEMPTED = 75
"""Exit code of a run that was asked to stop and has saved, where a supervisor asks for one: start it again."""

PREEMPTED_VARIABLE = "DALLE_JAX_PREEMPTED_CODE"
"""Environment variable by which a supervisor asks for another code than 0."""

STALLED = 76
"""Exit code of a process that made no step for too long (`dalle_jax.training.telemetry.watchdog`)."""

BROKEN_PIPE = 141
"""Exit code of a script whose output nobody reads any more, as a shell reports it of other programs."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of the system where a disk has no room, or a person no more of it."""


class UserError(Exception):
    """What a person did cannot work; the message says what is wrong, where, and what to do.

    The scripts in `launch/` print it as one line without a traceback and exit with code 2.
    Every other exception is a fault of the program and keeps its traceback.
    """


def closest(name: str, candidates: Iterable[str]) -> str:
    """Returns `, did you mean 'x'?` for the candidate most like `name`, or an empty string."""
    matches = get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f", did you mean '{matches[0]}'?" if matches else ""


def run_main(main: Callable[..., int | None], *args) -> None:
    """Runs a script's `main(*args)` and ends the process: 2 and one line on a `UserError`.

    What the system refuses (a full disk, a file in the place of a folder, rights) and a missing library for `gs://` are
    expected mistakes too, wherever they surface. Where nobody reads its output any more, as after `| head -1`, it ends
    in silence, with 141 unless it had come to its end.
    """
    code: Any = BROKEN_PIPE
    try:
        try:
            code = main(*args) or 0
        except SystemExit as ended:  # as of --help
            code = ended.code
        sys.stdout.flush()
    except UserError as error:
        _tell(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        _tell("interrupted")
        code = 130
    except BrokenPipeError:
        if not _nobody_reads():
            raise
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        _tell('error: paths at gs:// need gcsfs: pip install ".[gcs]" in the clone')
        code = 2
    except OSError as error:
        message = _mistake(error)
        if message is None:
            raise
        _tell(f"error: {message}")
        code = 2
    sys.exit(code)


def _tell(line: str) -> None:
    sys.stderr.write(" ".join(line.split()) + "\n")
    sys.stderr.flush()


def _nobody_reads() -> bool:
    """Whether the reader of stdout or stderr has gone; what is still to be written there goes nowhere then."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # no file of the system, or closed
            waiting = select.poll()
            waiting.register(stream.fileno(), 0)  # errors are reported unasked
            if waiting.poll(0):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                gone = True
    return gone


def _mistake(error: OSError) -> str | None:
    """What a person can mend of what the system refused; None: it is a fault of the program."""
    if error.errno in DISK_FULL:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}: free some space and start again; what was saved before is intact"
    if isinstance(error, NotADirectoryError):
        return f"{error.filename} cannot be reached: a file stands where a folder should be; name another place"
    if error.filename is None:
        return None
    if error.errno == errno.EROFS:
        return f"{error.filename} cannot be written, since its file system is read-only: name another place"
    if isinstance(error, PermissionError):
        return f"{error.filename} is not allowed to this user ({error.strerror}): change its rights"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename} is a folder, where a file is wanted"
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{error.filename} cannot be reached ({error.strerror}): name another place"
    if error.errno in (errno.EIO, errno.ESTALE):
        return f"{error.filename} cannot be read or written: the disk or the network fails ({error.strerror})"
    return None
