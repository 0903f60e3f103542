"""Figures of the code's shape, to be compared before and after it is rebuilt.

python -m tests.figures           # lines of modules and functions, docstrings, helpers with one caller
python -m tests.figures --walk    # and the modules that one training step, and the sampling of an image, enter
"""

import argparse
import ast
import collections
import contextlib
import dataclasses
import runpy
import statistics
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dalle_jax", "clip_jax", "launch", "configs")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Module:
    """A Python file of the project: its path below the root, its lines, its syntax tree."""

    path: str
    lines: int
    tree: ast.Module

    @property
    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    @property
    def public(self) -> Iterator[tuple[str, ast.AST]]:
        """Classes and functions of the module, and methods of its public classes, by dotted name."""
        yield "", self.tree
        for node in self.tree.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                yield node.name, node
                inner = node.body if isinstance(node, ast.ClassDef) else []
                yield from (
                    (f"{node.name}.{method.name}", method)
                    for method in inner
                    if isinstance(method, Function) and not method.name.startswith("_") and not _is_inherited(node)
                )


def _is_inherited(node: ast.ClassDef) -> bool:
    """A method of a class with bases may be one that its base describes."""
    return bool(node.bases)


def modules() -> list[Module]:
    """Every Python file of the packages, scripts and configs that has anything in it."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = [(str(path.relative_to(ROOT)), path.read_text()) for path in paths]
    return [Module(path, len(text.splitlines()), ast.parse(text)) for path, text in texts if text]


def private_functions(module: Module) -> dict[str, int]:
    """How often each private function or method of a module is named in it, definitions aside."""
    named = collections.Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    names = {function.name for function in module.functions}
    return {name: named[name] for name in names if name.startswith("_") and not name.startswith("__")}


def spread(sizes: list[int]) -> str:
    """Median, 90th percentile and maximum."""
    return f"median {statistics.median(sizes):g}, 90th {statistics.quantiles(sizes, n=10)[-1]:.0f}, max {max(sizes)}"


def shape() -> Iterator[str]:
    """The figures that the source alone gives, a line each."""
    found = modules()
    yield f"modules {len(found)}; lines: {spread([module.lines for module in found])}"
    longest = sorted(found, key=lambda module: -module.lines)[:5]
    yield "longest modules: " + ", ".join(f"{module.path} {module.lines}" for module in longest)
    lengths = [node.end_lineno - node.lineno + 1 for module in found for node in module.functions if node.end_lineno]
    yield f"functions {len(lengths)}; lines: {spread(lengths)}"
    bare = [
        f"{module.path}:{name or 'module'}"
        for module in found
        for name, node in module.public
        if ast.get_docstring(node) is None
    ]
    yield f"public names without a docstring: {len(bare)}" + "".join(f"\n    {name}" for name in bare)
    callers = [count for module in found for count in private_functions(module).values()]
    yield f"private functions {len(callers)}; with one caller {callers.count(1)}"


class Entered:
    """Collects the modules of the project whose functions run within a function of a given qualified name."""

    def __init__(self, within: str):
        self.files: set[str] = set()
        self._within, self._depth = within, 0
        self._folders = tuple(f"{ROOT / folder}/" for folder in FOLDERS)

    def __enter__(self) -> "Entered":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: types.FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if not code.co_filename.startswith(self._folders):
            return
        if code.co_qualname == self._within:
            self._depth += 1 if event == "call" else -1
        if self._depth and event == "call" and code.co_name != "<module>":
            self.files.add(str(Path(code.co_filename).relative_to(ROOT)))


def walk() -> Iterator[str]:
    """Modules entered by training a decoder of the tiny quickstart for two steps, and by sampling from it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--config=configs/quickstart.py:tiny", f"--workdir={folder}/run", "--stages=codec"]
        subprocess.run([sys.executable, "-m", "launch.train", *arguments], cwd=ROOT, check=True, capture_output=True)
        sys.argv = ["launch.train", *arguments[:2], "--stages=decoder"]
        with Entered("train_stage") as training, contextlib.suppress(SystemExit):
            runpy.run_module("launch.train", run_name="__main__")
        import dalle_jax

        dalle = dalle_jax.load(f"{folder}/run")
        with Entered("Dalle.generate") as sampling:
            dalle.generate("a small red circle", num_samples=2)
    for name, found in (("training a decoder", training), ("sampling", sampling)):
        yield f"modules entered by {name}: {len(found.files)}" + "".join(f"\n    {f}" for f in sorted(found.files))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walk", action="store_true")
    asked = parser.parse_args()
    for line in shape():
        print(line)
    if asked.walk:
        for line in walk():
            print(line)
