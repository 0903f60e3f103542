"""Letters in the annotations of shapes are those of the key in `dalle_jax/nn/__init__.py`."""

import ast
import re
from pathlib import Path

import dalle_jax.nn

ROOT = Path(__file__).parents[2]
TYPES = {"Float", "Float32", "Int", "Int32", "UInt8", "UInt32", "Bool", "Key", "Num", "Shaped"}


def letters() -> dict[str, str]:
    """Dimensions of one letter in all annotations of the packages, each with a file that has it."""
    found = {}
    for package in ("dalle_jax", "clip_jax"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (
                    isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in TYPES
                ):
                    continue
                shape = node.slice.elts[1].value
                found |= dict.fromkeys(re.findall(r"(?<![A-Za-z_])[A-Za-z](?![A-Za-z_])", shape), str(path))
    return found


def test_the_key_has_every_letter():
    key = dalle_jax.nn.__doc__.split("Dimension key")[1].split("What is spelt out")[0]
    known = set(re.findall(r"(?:^|  )([A-Za-z]) [^ ]", key, re.MULTILINE))
    used = letters()
    assert len(used) > 10
    assert used.keys() <= known, {letter: used[letter] for letter in used.keys() - known}
    assert known <= used.keys(), "the key has letters that nothing is annotated with"
