"""Compiled programs as text (`compiled.as_text()`), read far enough to count: instructions, their arrays, and how often
each computation runs.

XLA prints one computation after another; loops, fusions and branches name the computations that they run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

CONTROL = ("while", "conditional", "call", "async-start")
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "add-dependency",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "iota",
    "async-update",
    *CONTROL,
)
"""What moves no bytes itself; `CONTROL` runs computations whose instructions may."""
BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_LISTED = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class HloArray:
    """Shape of one array of one device.

    Attributes:
      dtype: as XLA writes it: `f32`, `bf16`, `pred`.
      shape: sizes.
      in_memory: whether it lies in the device's main memory, not in the memory on the chip (`S(1)` in its layout).
    """

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool = True

    @property
    def bytes(self) -> int:
        """Without padding to tiles."""
        bits = BITS.get(self.dtype)
        if bits is None:
            bits = int(re.sub(r"^[a-z]+(\d+).*", r"\1", self.dtype))
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = arrays opcode(inside), attributes`; `inside` names the operands."""

    name: str
    opcode: str
    arrays: tuple[HloArray, ...]
    inside: str
    attributes: str
    is_root: bool = False

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions that it reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.inside))

    @property
    def bytes(self) -> int:
        """Of all its results."""
        return sum(array.bytes for array in self.arrays)

    @property
    def called(self) -> dict[str, str]:
        """Computations that it runs, by role."""
        found = dict(_CALLED.findall(self.attributes))
        for listed in _LISTED.findall(self.attributes):
            found |= {f"branch {i}": name.strip(" %") for i, name in enumerate(listed.split(","))}
        return found


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, each a dictionary of instructions in the order of the text."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs in one run of the program.

        A loop without a known count runs once; of branches the dearest is the one that runs, as for FLOPs.
        """
        runs = dict.fromkeys(self.computations, 0)
        runs[self.entry] = 1
        for name in self._callers_first():
            for instruction in self.computations[name].values():
                for callee, rounds in self._calls(instruction):
                    runs[callee] += runs[name] * rounds
        return runs

    @property
    def unknown_loops(self) -> int:
        """Loops that run and do not say how often."""
        return sum(
            instruction.opcode == "while" and self.trip_count(instruction) is None
            for name, instruction in self.instructions()
            if self.runs[name]
        )

    def trip_count(self, loop: Instruction) -> int | None:
        """Rounds of a loop: the compiler's figure, or the constant that its counter, from 0 on, is compared with."""
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition = self.computations.get(loop.called.get("condition", ""), {})
        root = next((line for line in condition.values() if line.is_root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        limit = condition.get(root.operands[1])
        return int(limit.inside) if limit is not None and limit.opcode == "constant" else None

    def instructions(self) -> Iterator[tuple[str, Instruction]]:
        """All of them, each with its computation's name."""
        for name, lines in self.computations.items():
            for instruction in lines.values():
                yield name, instruction

    def operands(self, computation: str, instruction: Instruction) -> list[HloArray]:
        """The arrays that an instruction reads."""
        lines = self.computations[computation]
        return [array for name in instruction.operands if name in lines for array in lines[name].arrays]

    def _calls(self, instruction: Instruction) -> list[tuple[str, int]]:
        """Computations that one run of an instruction runs, each with its rounds."""
        if instruction.opcode == "conditional":
            return [(max(instruction.called.values(), key=self._made), 1)]
        rounds = self.trip_count(instruction) or 1 if instruction.opcode == "while" else 1
        return [(callee, rounds) for callee in instruction.called.values()]

    def _made(self, name: str) -> int:
        """Bytes that a computation and what it runs write, roughly: how branches are compared."""
        total = 0
        for instruction in self.computations[name].values():
            if instruction.opcode not in FREE:
                total += instruction.bytes
            elif instruction.opcode in CONTROL:
                total += sum(rounds * self._made(callee) for callee, rounds in self._calls(instruction))
        return total

    def _callers_first(self) -> list[str]:
        """Computations from the entry on, each after all that call it."""
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in done:
                for instruction in self.computations[name].values():
                    for callee in instruction.called.values():
                        visit(callee)
                done[name] = None

        visit(self.entry)
        return list(reversed(done))


def parse(text: str) -> Program:
    """Reads a program's text.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, lines = None, None
    for line in _COMMENT.sub("", text).splitlines():
        if head := _HEAD.match(line):
            lines = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif lines is not None and (found := _LINE.match(line)):
            lines[found[2]] = _instruction(found[2], found[3], is_root=bool(found[1]))
    if entry is None:
        raise ValueError("the text holds no ENTRY computation")
    return Program(computations, entry)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    shape, rest = _split_shape(rest)
    opcode, rest = rest.split("(", 1)
    end = _closing(rest)
    return Instruction(name, opcode.strip(), tuple(_arrays(shape)), rest[:end], rest[end + 1 :], is_root)


def _split_shape(text: str) -> tuple[str, str]:
    """A tuple's shape stands in parentheses; an array's ends at the first space."""
    if text.startswith("("):
        end = _closing(text[1:]) + 2
        return text[:end], text[end:]
    shape, rest = text.split(" ", 1)
    return shape, rest


def _closing(text: str) -> int:
    """Where the parenthesis that was opened before the text is closed."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _arrays(shape: str) -> Iterator[HloArray]:
    for dtype, sizes, layout in _ARRAY.findall(shape):
        # A dimension of bounded size is printed as `<=8`.
        dimensions = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield HloArray(dtype, dimensions, in_memory=not re.search(r"S\([1-9]\d*\)", layout))
