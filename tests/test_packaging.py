"""What the code imports is what `pyproject.toml` asks for, and its bounds have reasons."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pillow": "PIL", "absl-py": "absl", "scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}
EXTRAS = {"sklearn", "wandb", "torch", "torchvision", "open_clip", "dall_e", "dalle_pytorch"}
"""Imported where somebody asks for what they do."""


def name_of(requirement: str) -> str:
    found = re.match(r"[\w-]+", requirement)
    assert found
    return found[0]


def imported(package: str) -> set[str]:
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


@pytest.mark.parametrize("package", ["dalle_jax", "clip_jax", "launch"])
def test_what_is_imported_is_asked_for(package):
    declared = {MODULES.get(name, name.replace("-", "_")) for name in map(name_of, PROJECT["dependencies"])}
    assert imported(package) - declared - EXTRAS <= {"dalle_jax", "clip_jax", "configs", "launch"}


def test_upper_bounds_have_reasons():
    argued = (ROOT / "docs/decisions/0006-bounds.md").read_text()
    requirements = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    bounded = [
        (name_of(requirement), found[0]) for requirement in requirements if (found := re.search("<[^,]+", requirement))
    ]
    assert len(bounded) >= 4
    for name, bound in bounded:
        assert f"`{name}{bound}`" in argued


def test_orbax_is_held_below_its_other_interface():
    assert any(re.fullmatch(r"orbax-checkpoint>=[\d.]+,<1\.0", requirement) for requirement in PROJECT["dependencies"])
