"""What devices send each other in a step: the collectives of a compiled program, by the axes of the mesh they cross."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from launch.planning.hlo import Instruction, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_GROUPS = re.compile(r"replica_groups=(\{\{.*?\}\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=(\{\{.*?\}\}|\{\})")
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$")
_SUBAXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of transfer along some axes of the mesh; bytes are what one device sends in one step.

    Attributes:
      kind: one of `KINDS`.
      axes: of the mesh, in its order.
      count: transfers a step.
      within: bytes inside a slice.
      between: bytes from slice to slice.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    within: float
    between: float


def collectives(program: Program, mesh: Mesh) -> list[Collective]:
    """The collectives of one run of a program, those in loops as often as they run, the largest first.

    A transfer that the compiler spreads over several fusions, to compute meanwhile, is one: it keeps its channel.

    Args:
      program: compiled for the devices of `mesh`.
      mesh: its devices in their order are the program's partitions.
    """
    once: dict[tuple, tuple[str, np.ndarray, int, int]] = {}
    for computation, instruction in program.instructions():
        kind = _kind(computation, instruction)
        runs = program.runs[computation]
        if kind is None or not runs:
            continue
        size = sum(array.bytes for array in program.operands(computation, instruction))
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        key = (kind, size, channel[1] if channel else (computation, instruction.name))
        groups = _groups(instruction, mesh.size)
        once[key] = (kind, groups, size, max(runs, once[key][3] if key in once else 0))
    return _by_axes(list(once.values()), mesh)


def wire_bytes(kind: str, size: float, members: int, slices: int = 1) -> tuple[float, float]:
    """Bytes that a device sends within its slice and between slices, by the best algorithm there is.

    Across slices a transfer is done in two parts: what can be summed or shared inside a slice crosses the slow links
    once.

    Args:
      kind: one of `KINDS`.
      size: bytes that a device brings in.
      members: devices of a group.
      slices: that the group spans, equally.
    """
    inside = members // slices
    if kind == "all-gather":
        return size * slices * (inside - 1), size * (slices - 1)
    if kind in ("reduce-scatter", "all-reduce"):
        passes = 2 if kind == "all-reduce" else 1
        return passes * size * (inside - 1) / inside, passes * size / inside * (slices - 1) / slices
    if kind in ("all-to-all", "ragged-all-to-all"):
        return size * (inside - 1) / members, size * (members - inside) / members
    return (size, 0.0) if slices == 1 else (0.0, size)


def _kind(computation: str, instruction: Instruction) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    # The TPU compiler writes a reduce-scatter as a fusion of an all-reduce with the slice of its result.
    return "reduce-scatter" if kind == "all-reduce" and computation.startswith("all-reduce-scatter") else kind


def _by_axes(found: list[tuple[str, np.ndarray, int, int]], mesh: Mesh) -> list[Collective]:
    slices = np.asarray([getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat])
    total: dict[tuple[str, tuple[str, ...]], Collective] = {}
    for kind, groups, size, runs in found:
        axes = _axes(groups, mesh)
        if not axes:
            continue  # every device keeps what it has
        # A ring over slices has pairs inside of them and pairs between: the step waits for the slow ones.
        crossed = max(len(np.unique(slices[group])) for group in groups)
        within, between = wire_bytes(kind, size, groups.shape[1], crossed)
        key = (kind, axes)
        before = total.get(key, Collective(*key, 0, 0.0, 0.0))
        total[key] = Collective(
            *key, before.count + runs, before.within + within * runs, before.between + between * runs
        )
    rows = [row for row in total.values() if row.within + row.between > 0]
    return sorted(rows, key=lambda row: -(row.within + row.between))


def _axes(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Axes along which the members of a group differ."""
    coordinates = np.stack(np.unravel_index(groups, mesh.devices.shape), axis=-1)
    differs = (coordinates != coordinates[:, :1]).any(axis=(0, 1))
    return tuple(name for name, yes in zip(mesh.axis_names, differs, strict=True) if yes)


def _groups(instruction: Instruction, partitions: int) -> np.ndarray:
    """Partitions of each group, [groups, members]; pairs of sender and receiver for a permutation."""
    text = instruction.attributes
    if found := _PAIRS.search(text):
        pairs = np.asarray(_lists(found[1]), int).reshape(-1, 2)
        return pairs[pairs[:, 0] != pairs[:, 1]]
    if found := _MESH.search(text):
        return _mesh_groups(*found.groups())
    found = _GROUPS.search(text)
    if found is None or found[1] == "{}":
        return np.arange(partitions)[None]
    if found[1].startswith("{"):
        return np.asarray(_lists(found[1]))
    shape, source = found[1].split("<=")
    return _iota(source).reshape(_numbers(shape.strip("[]")))


def _mesh_groups(sizes: str, order: str | None, grouped: str) -> np.ndarray:
    """Groups written by the axes of a mesh of the compiler's own: `mesh['a'=4,'b'=4], device_ids=(...) {'b'}`.

    An axis may be used in part: `'a':(2)4` is its factor of 4 after one of 2.
    """
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    ids = _iota(order) if order else np.arange(int(np.prod(list(axes.values()))))
    factors: list[int] = []
    chosen: list[int] = []
    wanted = {name: (int(before or 1), int(size or 0)) for name, before, size in _SUBAXIS.findall(grouped)}
    for name, size in axes.items():
        before, part = wanted.get(name, (size, 1))
        part = part or size
        factors += [before, part, size // before // part]
        if name in wanted:
            chosen.append(len(factors) - 2)
    rest = [axis for axis in range(len(factors)) if axis not in chosen]
    members = int(np.prod([factors[axis] for axis in chosen]))
    return ids.reshape(factors).transpose(*rest, *chosen).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: the numbers from 0 on in that shape, its axes permuted, in one row."""
    found = _IOTA.match(text)
    assert found is not None, text
    shape = _numbers(found[1])
    ids = np.arange(int(np.prod(shape))).reshape(shape)
    return (ids.transpose(_numbers(found[2])) if found[2] else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _lists(text: str) -> Sequence[list[int]]:
    return [_numbers(part) for part in re.findall(r"\{([\d,]+)\}", text)]
