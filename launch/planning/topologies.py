"""Slices of TPUs by name (`v5e-256`, `2xv5e-256`): their devices without having them, and how fast they are joined."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Collection, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from dalle_jax.errors import UserError, closest
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import AXES, fit_mesh
from dalle_jax.training.telemetry.chips import Chip
from launch.planning.families import FAMILIES, Family

_NAME = re.compile(r"(?:(\d+)x)?([a-z]\w*?)-(\d+)$")
_FIELDS = (*AXES, "slices")
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "v5": "v5p", "v4p": "v4"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind of chip.

    Attributes:
      name: as it was asked for.
      family: of the chips.
      shape: grid of chips of one slice.
      slices: how many, joined by the data centre's network.
    """

    name: str
    family: Family
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What one can do."""
        return self.family.chip

    @property
    def num_chips(self) -> int:
        """In all slices; JAX sees each chip as one device."""
        return self.slices * math.prod(self.shape)

    def devices(self) -> Sequence[jax.Device]:
        """Descriptions of the chips, for which programs can be compiled on this machine.

        Raises:
          UserError: the compiler (libtpu) is not installed.
        """
        require_compiler()
        from jax.experimental import topologies

        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{self.family.compiler_name}:{'x'.join(map(str, self.shape))}",
            chip_config_name="megacore" if self.family.cores_per_chip == 2 else "default",
            chips_per_host_bounds=(2, 2, 1),
            num_slices=self.slices,
        )
        return description.devices

    def link_bandwidth(self, mesh: Mesh, axes: Sequence[str]) -> float:
        """Bytes per second that a device can send to those along some axes of the mesh, within its slice.

        Two links for every dimension of the grid that the axes cover where it is closed to a ring, else one; 0 where
        they cover none (all devices in one place, or in other slices).
        """
        positions = mesh.devices[tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)].reshape(-1)
        first = positions[0]
        mates = [device for device in positions if _slice(device) == _slice(first)]
        coordinates = np.asarray([device.coords[: len(self.shape)] for device in mates])
        crossed = (coordinates != coordinates[:1]).any(axis=0)
        links = sum(
            (2 if length >= self.family.torus_from else 1)
            for length, yes in zip(self.shape, crossed, strict=True)
            if yes
        )
        return links * self.family.link_bandwidth


def _slice(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def require_compiler() -> None:
    """Refuses where libtpu is missing, and tells it that there is no TPU to look for.

    Raises:
      UserError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "planning needs the TPU compiler: .venv/bin/python -m pip install -c constraints.txt -e '.[tpu]' "
            "(it runs on this machine; no TPU is needed)"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def find_topology(name: str) -> Topology:
    """The topology of that name.

    Raises:
      UserError: there is no such chip, or no slice of that size; names what is near.
    """
    found = _NAME.match(name)
    if found is None:
        raise UserError(f"--topology={name}: write CHIP-N or SLICESxCHIP-N, as v5e-256 or 2xv5e-256")
    slices, kind, size = int(found[1] or 1), found[2], int(found[3])
    family = FAMILIES.get(_ALIASES.get(kind, kind))
    if family is None:
        known = ", ".join(FAMILIES)
        raise UserError(f"--topology={name}: unknown chip '{kind}'{closest(kind, FAMILIES)} (known: {known})")
    if slices < 1:
        raise UserError(f"--topology={name}: there must be at least one slice")
    chip = family.chip.name
    if size not in family.sizes:
        unit = "cores, two a chip" if family.cores_per_chip == 2 else "chips"
        near = sorted(sorted(family.sizes, key=lambda known: abs(math.log(known / max(size, 1))))[:3])
        raise UserError(
            f"--topology={name}: there is no slice of {size} {unit}; near are "
            f"{', '.join(f'{chip}-{known}' for known in near)}, and two slices are written 2x{chip}-{near[0]}"
        )
    return Topology(name, family, family.sizes[size], slices)


def fit_topology(config: MeshConfig, topology: Topology, given: Collection[str] = ()) -> MeshConfig:
    """`fit_mesh` to the chips of a topology.

    Args:
      config: the mesh that is wanted.
      topology: the chips.
      given: fields of the mesh that a person chose for these chips: they stay as they are.

    Raises:
      UserError: the chips do not allow what is given.
    """
    chips, slices = topology.num_chips, topology.slices
    mesh = fit_mesh(config, chips, slices, given)
    sizes = [getattr(mesh, axis) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes):
        return mesh  # whoever makes it refuses it
    known = math.prod(size for size in sizes if size != -1)
    data = chips // known if mesh.data == -1 else mesh.data
    fits = (chips % known == 0 if -1 in sizes else chips == known) and data % slices == 0
    if not fits or any(getattr(mesh, name) != getattr(config, name) for name in given):
        raise UserError(
            f"{' '.join(_flags(config, given))} does not fit {topology.name}: data x fsdp x tensor must be its "
            f"{chips} chips, and data a multiple of its slices, {slices}"
        )
    return mesh


def mesh_flags(config: MeshConfig, mesh: MeshConfig) -> tuple[str, ...]:
    """The flags that turn a config's mesh into another one."""
    return _flags(mesh, [name for name in _FIELDS if getattr(mesh, name) != getattr(config, name)])


def _flags(mesh: MeshConfig, names: Collection[str]) -> tuple[str, ...]:
    return tuple(f"--config.mesh.{name}={getattr(mesh, name)}" for name in _FIELDS if name in names)
