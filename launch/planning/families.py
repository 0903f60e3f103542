"""TPU slices by the chip they are made of: which exist, how they are wired, and what published runs reach on them.

What one chip can do stands in `dalle_jax.training.telemetry.chips`.
"""

import dataclasses
import math

from dalle_jax.training.telemetry import chips
from dalle_jax.training.telemetry.chips import Chip
from launch.cluster.accelerators import GENERATIONS

GBIT = 1e9 / 8
"""Bytes of a gigabit."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Slices of one kind of chip.

    Attributes:
      chip: figures of one of them.
      network_bandwidth: its share of its host's network card, bytes per second, one way.
      torus_from: a dimension of at least this many chips is closed to a ring.
      compiler_name: as libtpu spells it.
      published_mfu: useful FLOPs over peak that published training runs reach, lowest and highest.
      source: of the network's figure and of the published runs.
    """

    chip: Chip
    network_bandwidth: float
    torus_from: int
    compiler_name: str
    published_mfu: tuple[float, float]
    source: str

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Slices of several chips that exist, as grids of chips with links along two or three dimensions."""
        grids = [tuple(map(int, grid.split("x"))) for grid in GENERATIONS[self.chip.name].topologies.values()]
        return [grid for grid in grids if math.prod(grid) > 1]

    @property
    def cores_per_chip(self) -> int:
        """What N of `NAME-N` counts: chips (1), or cores (2)."""
        return GENERATIONS[self.chip.name].cores_per_chip

    @property
    def sizes(self) -> dict[int, tuple[int, ...]]:
        """The shape of `NAME-N` by N."""
        return {self.cores_per_chip * math.prod(shape): shape for shape in self.shapes}

    @property
    def link_bandwidth(self) -> float:
        """Of one link to a neighbour, bytes per second, one way: two a dimension share the chip's."""
        return self.chip.link_bandwidth / (2 * len(self.shapes[0]))


_CHIPS = {chip.name: chip for chip in chips.CHIPS}

FAMILIES = {
    family.chip.name: family
    for family in (
        Family(
            _CHIPS["v4"],
            network_bandwidth=50 * GBIT,
            torus_from=4,
            compiler_name="v4",
            published_mfu=(0.46, 0.46),
            source="network taken as the v5p's; PaLM 540B (Chowdhery et al. 2022)",
        ),
        Family(
            _CHIPS["v5e"],
            network_bandwidth=25 * GBIT,
            torus_from=16,
            compiler_name="v5e",
            published_mfu=(0.61, 0.67),
            source="6.4 Tbit/s a pod of 256 (Google Cloud, TPU v5e); MaxText, 16B and 32B on v5e-256",
        ),
        Family(
            _CHIPS["v5p"],
            network_bandwidth=50 * GBIT,
            torus_from=4,
            compiler_name="v5",
            published_mfu=(0.65, 0.65),
            source="50 Gbit/s a chip (Google Cloud, TPU v5p); MaxText, Llama2-70B on v5p-1024",
        ),
        Family(
            _CHIPS["v6e"],
            network_bandwidth=100 * GBIT,
            torus_from=16,
            compiler_name="v6e",
            published_mfu=(0.39, 0.50),
            source="25.6 Tbit/s a pod of 256 (Google Cloud, TPU v6e); MaxText, Llama3.1 8B to 405B on v6e-256",
        ),
    )
}
