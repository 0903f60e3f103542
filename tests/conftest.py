"""What every test stands on: eight CPU devices, a compilation cache that outlives the run, checked types, data."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before JAX starts. Scripts that a test runs in a process of their own inherit these two, and find one device.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "dalle-jax" / "tests"))

import jax
import jaxtyping

from tests.storage_emulator import Emulator

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Shapes and types written on functions are checked on every call; this must come before the packages are imported.
jaxtyping.install_import_hook(["dalle_jax", "clip_jax"], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory) -> None:
    """Indices of the tests' tars do not stay with the person who runs them; scripts inherit the place."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    """Google Cloud Storage on loopback, where every library and script finds it."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("paths at gs:// need the extra `gcs`")
    emulator = Emulator()
    os.environ.update(emulator.environment)  # before gcsfs is imported, which looks at it
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
