"""The packages are guests in other people's processes: they change nothing there, and say nothing but by loggers."""

import ast
import json
import os
import platform
import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT, environment

STREAMS = {
    "dalle_jax/errors.py": "how a script ends",
    "dalle_jax/training/parallel/processes.py": "what was written is to be there before one of several processes ends",
    "dalle_jax/training/telemetry/writers.py": "the progress of a run on a terminal",
    "dalle_jax/training/telemetry/watchdog.py": "ends a process that stands still",
}
"""Files that touch stdout or stderr, and what for."""

PROGRAM = """
import importlib, json, logging, os, pathlib, pkgutil, resource, signal, sys, threading, warnings

# What other libraries do is theirs.
import absl.flags, absl.logging, fsspec, grain, jax, numpy, optax, orbax.checkpoint, scipy.sparse
import tensorboardX, tensorflow_datasets
from PIL import Image, ImageFile, PngImagePlugin

OURS = ("dalle_jax", "clip_jax")

def state():
    logs = [logging.getLogger(name) for name in (None, "absl", "jax", "PIL", *OURS)]
    return {
        "hooks": [repr(hook) for hook in (sys.unraisablehook, sys.excepthook, threading.excepthook)],
        "loggers": [[log.name, log.level, *map(repr, log.handlers), *map(repr, log.filters)] for log in logs],
        "warnings": list(map(repr, warnings.filters)),
        "environment": dict(os.environ),
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "fsspec": repr(fsspec.config.conf),
        "pillow": [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK,
                   PngImagePlugin.MAX_TEXT_MEMORY],
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "limits": [resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_STACK)],
        "numpy": numpy.geterr(),
        "streams": [repr(sys.stdout), repr(sys.stderr)],
        "flags": [absl.flags.FLAGS.is_parsed(), absl.logging.get_verbosity()],
        "folder": os.getcwd(),
        "path": sys.path,
    }

before = state()
import clip_jax, dalle_jax
for package in (dalle_jax, clip_jax):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
imported = state()
dalle_jax.load(sys.argv[1])
clip_jax.load(sys.argv[1]).encode_image([numpy.zeros((8, 8, 3), numpy.uint8)])
from dalle_jax.data.images.decode import decode
decode(pathlib.Path(sys.argv[2]).read_bytes(), max_pixels=1 << 20)
print(json.dumps([before, imported, state()]))
"""


@pytest.mark.entry
def test_importing_and_loading_leave_the_process_as_it_was(tiny_run, tmp_path):
    picture = next((tiny_run / "codec" / "previews").glob("*.png"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_run), str(picture)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, imported, loaded = json.loads(done.stdout)
    for kind in before:
        assert imported[kind] == before[kind], f"an import changes {kind}"
        assert loaded[kind] == before[kind], f"loading changes {kind}"
    assert done.stderr == ""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("script", [True, False])
def test_memory_is_kept_for_a_script_and_not_for_whoever_imports_a_part_of_one(script, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import ctypes; ctypes.CDLL = lambda name: exit('mallopt')")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    paths = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "JAX_PLATFORMS": "cpu"}
    command = ["-m", "launch.cluster.accelerators", "v5e-8"] if script else ["-c", "import launch.cluster.accelerators"]
    done = subprocess.run([sys.executable, *command], env=clean | paths, capture_output=True, text=True)
    assert ("mallopt" in done.stderr) == script, done.stderr


@pytest.mark.parametrize("package", ["dalle_jax", "clip_jax"])
def test_the_packages_do_not_print(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            printed = isinstance(node, ast.Name) and node.id == "print"
            assert not printed, f"{name}:{getattr(node, 'lineno', 0)} prints: log it, or return it"
            own = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
            assert not own or name in STREAMS, f"{name}:{getattr(node, 'lineno', 0)} writes to a stream of the process"
    assert all((ROOT / name).exists() for name in STREAMS)


def test_what_is_said_reaches_the_person(capfd):
    """A line each: warnings of everybody, and what the packages tell of a run."""
    program = (
        "import logging; logging.basicConfig();"
        "from launch.run.process_settings import set_up_process; set_up_process(); set_up_process();"
        "logging.getLogger('dalle_jax.x').warning('a %s', 'b'); logging.getLogger('clip_jax.x').info('c');"
        "logging.getLogger('other').info('d'); logging.getLogger('other').warning('e');"
        "from absl import logging as absl_logging; absl_logging.warning('f')"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert capfd.readouterr().err.splitlines() == ["warning: a b", "c", "warning: e", "warning: f"]
