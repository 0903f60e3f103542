"""Runs scripts of launch/ by the dozen: each in a fork of this process, which has imported what they all need.

A line of JSON on standard input asks for a run, `{"script", "arguments", "cwd", "devices"}`; a line on standard output
gives `{"code", "out", "err"}`. The fork runs the module as `python -m` does, parses flags of its own, and cannot harm
the next one. No device is touched here, so that a fork is safe.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback

import jax

import clip_jax
import dalle_jax.pipeline
import launch.run.stages

TIMEOUT = 400
"""Seconds after which a fork is killed, before the test that waits for it is given up: the next one needs an answer."""

IMPORTED = (jax, clip_jax, dalle_jax.pipeline, launch.run.stages)


def run(script: str, arguments: list[str], cwd: str, devices: int) -> dict:
    """A fork's exit code and what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(cwd)
            jax.config.update("jax_num_cpu_devices", devices)
            _leave(script, arguments)
        too_long = threading.Timer(TIMEOUT, os.kill, (child, signal.SIGKILL))
        too_long.start()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        too_long.cancel()
        too_long.join()  # no thread may be there at the next fork
        out.seek(0)
        err.seek(0)
        return {"code": status, "out": out.read().decode(), "err": err.read().decode()}


def _leave(script: str, arguments: list[str]) -> None:
    """Runs a module to its end and the process with it, as the interpreter would."""
    sys.argv = [f"launch/{script}.py", *arguments]
    code = 0
    try:
        runpy.run_module(f"launch.{script}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed here by accident is not an answer
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
