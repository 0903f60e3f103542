"""Bytes that a compiled program moves to and from a device's main memory, loops included.

Every instruction outside of fusions reads its operands and writes its results, except those in the memory on the chip.
A fusion reads of an operand only the slices that it takes, and writes into a buffer that it updates in place only what
it puts there. What the program would need to read at least is less; what it reads again because a cache is small is not
counted.
"""

import re

from launch.planning.collectives import KINDS
from launch.planning.hlo import CONTROL, FREE, HloArray, Instruction, Program

_FREE_TARGETS = re.compile(r'custom_call_target="(AsyncCollective\w+|ConcatBitcast|AssumeGatherIndicesInBound)"')
_PARTIAL_READS = ("dynamic-slice", "slice", "gather")


def memory_traffic(program: Program) -> float:
    """Bytes that one device reads from and writes to its main memory in one run of a program."""
    total = 0.0
    seen: set[tuple[str, str]] = set()
    for name in _top_level(program):
        for instruction in program.computations[name].values():
            total += program.runs[name] * _bytes(program, name, instruction)
    for name, instruction in program.instructions():
        # Those inside of fusions: a transfer that is spread over several of them counts once, by its channel.
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS and channel and (kind, channel[1]) not in seen:
            seen.add((kind, channel[1]))
            total += program.runs[name] * _in_memory([*program.operands(name, instruction), *instruction.arrays])
    return total


def _top_level(program: Program) -> list[str]:
    """Computations whose instructions run one by one: the entry, and what loops, branches and calls run."""
    found, waiting = [], [program.entry]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            for instruction in program.computations[name].values():
                if instruction.opcode in CONTROL:
                    waiting.extend(instruction.called.values())
    return found


def _in_memory(arrays: list[HloArray] | tuple[HloArray, ...]) -> int:
    return sum(array.bytes for array in arrays if array.in_memory)


def _bytes(program: Program, name: str, instruction: Instruction) -> int:
    opcode, kind = instruction.opcode, instruction.opcode.removesuffix("-start")
    if opcode in FREE or opcode.endswith("-done") or kind in KINDS or _FREE_TARGETS.search(instruction.attributes):
        return 0
    operands = program.operands(name, instruction)
    if opcode == "fusion":
        return _reads(program, instruction, operands) + _writes(program, instruction)
    if opcode in _PARTIAL_READS:
        return 2 * _in_memory(instruction.arrays)
    if opcode == "slice-start":
        # ((operand), result, context)
        taken = instruction.arrays[1]
        return taken.bytes * (operands[0].in_memory + taken.in_memory)
    if opcode == "copy-start":
        return _in_memory(instruction.arrays[:2])  # (result, operand, context)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = operands[1 if opcode == "dynamic-update-slice" else -1]
        return update.bytes * (update.in_memory + instruction.arrays[0].in_memory)
    return _in_memory(operands) + _in_memory(instruction.arrays)


def _reads(program: Program, fusion: Instruction, operands: list[HloArray]) -> int:
    """Of a fusion: whole operands, or the slices taken of them; nothing of a buffer that it updates or passes on."""
    total = 0
    for i, operand in enumerate(operands):
        part = _part_of(program, fusion, i) if operand.in_memory else 0
        total += operand.bytes if part is None else part
    return total


def _part_of(program: Program, fusion: Instruction, operand: int) -> int | None:
    """Bytes that a fusion, and those inside of it, read of an operand, where it is not the whole."""
    body = program.computations[fusion.called["calls"]]
    (parameter,) = [line for line in body.values() if line.opcode == "parameter" and int(line.inside) == operand]
    parts = [_part(program, user, name) for user, name in _users(body, parameter.name)]
    return None if None in parts else sum(part or 0 for part in parts)


def _part(program: Program, user: Instruction, name: str) -> int | None:
    """Bytes that an instruction of a fusion reads of a value, where it is not the whole."""
    if user.opcode == "tuple" or _passes_on(user):
        return 0
    if user.opcode == "fusion" and user.operands.count(name) == 1:
        return _part_of(program, user, user.operands.index(name))
    if user.operands[0] != name or name in user.operands[1:]:
        return None
    if user.opcode in _PARTIAL_READS:
        return user.bytes
    return 0 if user.opcode == "dynamic-update-slice" else None


def _passes_on(instruction: Instruction) -> bool:
    """Steps of a transfer that is under way while the fusion computes."""
    return instruction.opcode in KINDS or bool(_FREE_TARGETS.search(instruction.attributes))


def _users(body: dict[str, Instruction], name: str) -> list[tuple[Instruction, str]]:
    """Instructions that read a value, looked through bitcasts, each with the name by which it reads it."""
    found = []
    for instruction in body.values():
        if name in instruction.operands:
            found += _users(body, instruction.name) if instruction.opcode == "bitcast" else [(instruction, name)]
    return found


def _writes(program: Program, fusion: Instruction) -> int:
    """Of a fusion: its results, or what it puts into a buffer in place; nothing of what it passes on."""
    body = program.computations[fusion.called["calls"]]
    (root,) = [instruction for instruction in body.values() if instruction.is_root]
    makers = [body[name] for name in root.operands] if root.opcode == "tuple" else [root] * len(fusion.arrays)
    total = 0
    for array, maker in zip(fusion.arrays, makers, strict=True):
        inside, maker = _maker(program, body, maker)
        if inside is body and (maker.opcode == "parameter" or _passes_on(maker)):
            continue
        written = inside[maker.operands[1]].bytes if maker.opcode == "dynamic-update-slice" else array.bytes
        total += written * array.in_memory
    return total


def _maker(
    program: Program, body: dict[str, Instruction], value: Instruction
) -> tuple[dict[str, Instruction], Instruction]:
    """What makes a value, and the computation that it is in, looked for through bitcasts and into fusions inside."""
    while True:
        if value.opcode in ("bitcast", "get-tuple-element"):
            value = body[value.operands[0]]
        elif value.opcode == "fusion" and len(value.arrays) == 1:
            body = program.computations[value.called["calls"]]
            (value,) = [instruction for instruction in body.values() if instruction.is_root]
        else:
            return body, value
