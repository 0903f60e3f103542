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
# What a folder inside a package may import of that package beside itself; of the others, what its package may.
INSIDE = {
    "clip_jax/evaluation": {"clip_jax.config"},
    "clip_jax/losses": {"clip_jax.config"},
    "clip_jax/preprocessing": {"clip_jax.config"},
    "clip_jax/tokenizers": {"clip_jax.config"},
    "clip_jax/towers": {"clip_jax.config"},
    "clip_jax/weights": {
        "clip_jax.clip",
        "clip_jax.config",
        "clip_jax.model",
        "clip_jax.preprocessing",
        "clip_jax.tokenizers",
        "clip_jax.towers",
    },
    "dalle_jax/codec/weights": {"dalle_jax.codec.config", "dalle_jax.codec.model", "dalle_jax.codec.vqgan"},
    "dalle_jax/data/encoded": {
        "dalle_jax.data.config",
        "dalle_jax.data.counts",
        "dalle_jax.data.images",
        "dalle_jax.data.prefetch",
        "dalle_jax.data.records",
    },
    "dalle_jax/data/images": {"dalle_jax.data.config", "dalle_jax.data.records"},
    "dalle_jax/data/readers": {
        "dalle_jax.data.captions",
        "dalle_jax.data.config",
        "dalle_jax.data.left_out",
        "dalle_jax.data.paths",
        "dalle_jax.data.records",
        "dalle_jax.data.rows",
    },
    "dalle_jax/data/shapes": {"dalle_jax.data.config", "dalle_jax.data.records"},
    "dalle_jax/nn/attention": {"dalle_jax.nn.precision"},
    "dalle_jax/training/checkpoints": {
        "dalle_jax.training.config",
        "dalle_jax.training.parallel",
        "dalle_jax.training.state",
        "dalle_jax.training.trees",
    },
    "dalle_jax/training/parallel": {"dalle_jax.training.config", "dalle_jax.training.trees"},
    "dalle_jax/training/telemetry": {
        "dalle_jax.training.config",
        "dalle_jax.training.parallel",
        "dalle_jax.training.task",
    },
    "launch/benchmarks": {"launch.run"},
    "launch/cluster": set(),
    "launch/evaluation": {"launch.monitoring", "launch.run"},
    "launch/fault_injection": {"launch.cluster", "launch.run"},
    "launch/monitoring": {"launch.run"},
    "launch/planning": {"launch.cluster", "launch.run"},
    "launch/run": {"launch.cli"},
}
EVERYWHERE = {f"dalle_jax.{name}" for name in ("code_version", "config", "errors", "fetched", "storage", "text_files")}
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


def folders_inside() -> list[str]:
    """Folders with modules inside the parts of `ALLOWED`."""
    packages = {path.parent.relative_to(ROOT) for part in ALLOWED for path in (ROOT / part).rglob("*.py")}
    return sorted(str(folder) for folder in packages if str(folder) not in ALLOWED)


@pytest.mark.parametrize("folder", folders_inside())
def test_arrows_inside_a_package(folder):
    assert folder in INSIDE, f"say in INSIDE what {folder} may import of its own package"
    (package,) = [part for part in ALLOWED if folder.startswith(part + "/") and part != "dalle_jax"]
    own = package.replace("/", ".")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / folder).glob("*.py"))
        for name in imports(path)
        if inside(name, [own]) and not inside(name, INSIDE[folder] | {folder.replace("/", ".")})
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", [*ALLOWED, *INSIDE])
def test_every_part_is_there(folder):
    assert any((ROOT / folder).rglob("*.py")), f"{folder} holds no Python file: the table of arrows is out of date"


@pytest.mark.parametrize("package", ["dalle_jax", "clip_jax"])
def test_core_imports_neither_torch_nor_tensorflow(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imports(path)
        if inside(name, NOT_IN_THE_CORE)
    ]
    assert not wrong, "\n".join(wrong)
