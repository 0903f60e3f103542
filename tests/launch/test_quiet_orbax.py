"""What TensorStore's threads print when nobody listens any more, and what must be printed still."""

import asyncio
import sys
import threading

import pytest
import tensorstore

from launch.run.orbax_logging import quiet_orbax


@pytest.fixture
def plain_hook(monkeypatch):
    """Python's own hook; pytest's is put back."""
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)


def write_that_ends_late():
    """A future of TensorStore that a coroutine waits for is set, on another thread, once the loop is closed."""
    promise, future = tensorstore.Promise.new()

    async def wait():
        await future

    loop = asyncio.new_event_loop()
    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    thread = threading.Thread(target=promise.set_result, args=(1,))
    thread.start()
    thread.join()
    task._log_destroy_pending = False


def test_the_noise_is_what_it_is_taken_for(plain_hook, capfd):
    write_that_ends_late()
    assert capfd.readouterr().err.endswith("RuntimeError: Event loop is closed\n")


def test_reports_to_a_closed_loop_are_dropped(plain_hook, capfd):
    quiet_orbax()
    hook = sys.unraisablehook
    quiet_orbax()
    assert sys.unraisablehook is hook
    write_that_ends_late()
    assert capfd.readouterr().err == ""


class CallsIntoAClosedLoop:
    def __del__(self):
        loop = asyncio.new_event_loop()
        loop.close()
        loop.call_soon_threadsafe(print)


class Fails:
    def __del__(self):
        raise ValueError("odd")


@pytest.mark.parametrize("kind, message", [(CallsIntoAClosedLoop, "Event loop is closed"), (Fails, "odd")])
def test_everything_else_is_printed(plain_hook, capfd, kind, message):
    quiet_orbax()
    kind()
    assert message in capfd.readouterr().err
