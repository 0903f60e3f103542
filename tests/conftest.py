"""What every test stands on: eight CPU devices, quick compilation, a cache of programs, checked types, data."""

import collections
import contextlib
import ctypes
import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before JAX starts. Scripts that a test runs in a process of their own inherit these three, and find one device.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nine tenths of the time of a first run is compilation, and a test runs its programs once: machine code that is made
# in half the time and computes the same is the better bargain. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/dalle-jax/tests"))

import jax
import jaxtyping

from tests.storage_emulator import Emulator

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Shapes and types written on functions are checked on every call; this must come before the packages are imported.
jaxtyping.install_import_hook(["dalle_jax", "clip_jax"], "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def _programs_go_with_their_module() -> Iterator[None]:
    """Modules share few programs, and thousands of them would fill gigabytes by the end of a run."""
    yield
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which folders the time went to, so that a folder that has grown slow is seen in every run."""
    seconds = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["/".join(report.nodeid.split("/")[:2]).partition("::")[0]] += report.duration
    terminalreporter.section("seconds by folder, added up over workers")
    for folder, duration in seconds.most_common():
        terminalreporter.write_line(f"{duration:7.0f}  {folder}")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory) -> None:
    """Indices of the tests' tars do not stay with the person who runs them; scripts inherit the place."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """Google Cloud Storage on loopback, where every library and script finds it."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("paths at gs:// need the extra `gcs`")
    from launch.run.process_settings import keep_no_listings  # not before the hook above

    emulator = Emulator()
    os.environ.update(emulator.environment)  # before gcsfs is imported, which looks at it
    keep_no_listings()
    yield emulator
    emulator.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets (an environment variable, or beside the clone), which a clone does not have."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("DALLE_JAX_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; DALLE_JAX_SHARED=FOLDER names another place")
    return folder


@pytest.fixture(scope="session")
def emoji_glob(shared_data: Path) -> str:
    """Webdataset shards of emoji and their names: .png, .txt, .json."""
    return _glob(shared_data / "emoji")


@pytest.fixture(scope="session")
def cifar_glob(shared_data: Path) -> str:
    """Webdataset shards of photographs with captions: .jpg, .txt, .cls."""
    return _glob(shared_data / "cifar10")


def _glob(folder: Path) -> str:
    if not list(folder.glob("train-*.tar")):
        pytest.skip(f"no shards at {folder}")
    return str(folder / "train-*.tar")
