"""Which package may import which: read from the source, so that imports inside functions count too."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each part may import of the project. A file belongs to the longest matching key.
ALLOWED = {
    "dalle_jax/nn": {"dalle_jax.nn"},
    "dalle_jax/data": {"dalle_jax.data"},
    "dalle_jax/training": {"dalle_jax.training"},
    "dalle_jax/weights": {"dalle_jax.weights"},
    "dalle_jax/codec": {
        "dalle_jax.codec",
        "dalle_jax.nn",
        "dalle_jax.data",
        "dalle_jax.training",
        "dalle_jax.weights",
        "dalle_jax.run_record",
    },
    "dalle_jax/decoder": {"dalle_jax.decoder", "dalle_jax.nn", "dalle_jax.data", "dalle_jax.training"},
    "dalle_jax": {"dalle_jax"},
    "clip_jax": {
        "clip_jax",
        "dalle_jax.nn",
        "dalle_jax.data",
        "dalle_jax.training",
        "dalle_jax.weights",
        "dalle_jax.run_record",
    },
    "configs": {"configs", "dalle_jax", "clip_jax"},
    "launch": {"launch", "configs", "dalle_jax", "clip_jax"},
}
EVERYWHERE = {"dalle_jax.config", "dalle_jax.errors", "dalle_jax.storage"}
OURS = ("dalle_jax", "clip_jax", "launch", "configs")
NOT_IN_THE_CORE = ("torch", "tensorflow", "torchvision", "open_clip", "transformers")


def imports(path):
    """Dotted names that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            # `from dalle_jax import nn` names a module too.
            deep = (ROOT / node.module.replace(".", "/")).is_dir() and node.module.split(".")[0] in OURS
            yield from (f"{node.module}.{alias.name}" if deep else node.module for alias in node.names)


def inside(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def files(folder):
    """Python files of a part, without those of parts inside it."""
    nested = [part for part in ALLOWED if part != folder and part.startswith(folder + "/")]
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not any(path.is_relative_to(ROOT / part) for part in nested):
            yield path


@pytest.mark.parametrize("folder", ALLOWED)
def test_arrows(folder):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        for name in imports(path)
        if inside(name, OURS) and not inside(name, ALLOWED[folder] | EVERYWHERE)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ALLOWED)
def test_every_part_is_there(folder):
    assert list(files(folder)), f"{folder} holds no Python file: the table of arrows is out of date"


@pytest.mark.parametrize("package", ["dalle_jax", "clip_jax"])
def test_core_imports_neither_torch_nor_tensorflow(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        if inside(name, NOT_IN_THE_CORE)
    ]
    assert not wrong, "\n".join(wrong)
