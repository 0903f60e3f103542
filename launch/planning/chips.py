"""The chips that a plan can be made for: one table of figures, and where each comes from."""

import dataclasses

from dalle_jax.training.chips import CHIPS as PEAKS

GB, GiB = 1e9, 2.0**30
CLOUD = "https://docs.cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; bandwidths in bytes per second, memory in bytes.

    Attributes:
      name: as in `NAME-N`.
      peak_flops: bfloat16, of `dalle_jax.training.chips`.
      memory: main memory (HBM).
      memory_bandwidth: of it.
      link_bandwidth: of one link to a neighbour, one way.
      dcn_bandwidth: share of one chip in its host's network card, one way.
      shapes: slices that exist, as grids of chips; two or three dimensions of links.
      torus_from: a dimension of at least this many chips is closed to a ring.
      cores_per_chip: what N counts: chips, or cores (v4 and v5p).
      compiler_name: of the generation, as libtpu spells it.
      published_mfu: share of the peak that published training runs reach as useful FLOPs, lowest and highest.
      source: of the figures.
    """

    name: str
    peak_flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float
    shapes: tuple[tuple[int, ...], ...]
    torus_from: int
    cores_per_chip: int
    compiler_name: str
    published_mfu: tuple[float, float]
    source: str

    @property
    def sizes(self) -> dict[int, tuple[int, ...]]:
        """The shape of `NAME-N` by N."""
        return {self.cores_per_chip * _product(shape): shape for shape in self.shapes}


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


_FLAT = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    (2, 2, 1),
    (2, 2, 2),
    (2, 2, 4),
    (2, 4, 4),
    (4, 4, 4),
    (4, 4, 8),
    (4, 8, 8),
    (8, 8, 8),
    (8, 8, 16),
    (8, 16, 16),
    (16, 16, 16),
)

# Links: Google gives the sum of all links of a chip, both ways; one link one way is that over 2 x 4 (two dimensions) or
# 2 x 6 (three). Between slices: the pages' share of a chip in its host's network.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            peak_flops=PEAKS["v4"].flops,
            memory=32 * GiB,
            memory_bandwidth=1200 * GB,
            link_bandwidth=50 * GB,
            dcn_bandwidth=50 * GB / 8,
            shapes=_CUBES,
            torus_from=4,
            cores_per_chip=2,
            compiler_name="v4",
            published_mfu=(0.46, 0.46),
            source=f"{CLOUD}v4; links: Jouppi et al. 2023 (TPU v4, six of 50 GB/s); network taken as the v5p's; "
            "MFU: PaLM 540B (Chowdhery et al. 2022)",
        ),
        Chip(
            name="v5e",
            peak_flops=PEAKS["v5e"].flops,
            memory=16 * GiB,
            memory_bandwidth=819 * GB,
            link_bandwidth=400 * GB / 8,
            dcn_bandwidth=25 * GB / 8,
            shapes=_FLAT,
            torus_from=16,
            cores_per_chip=1,
            compiler_name="v5e",
            published_mfu=(0.61, 0.67),
            source=f"{CLOUD}v5e (6.4 Tb/s of network a pod of 256); MFU: MaxText, 16B and 32B on v5e-256",
        ),
        Chip(
            name="v5p",
            peak_flops=PEAKS["v5p"].flops,
            memory=95 * GiB,
            memory_bandwidth=2765 * GB,
            link_bandwidth=1200 * GB / 12,
            dcn_bandwidth=50 * GB / 8,
            shapes=_CUBES,
            torus_from=4,
            cores_per_chip=2,
            compiler_name="v5",
            published_mfu=(0.65, 0.65),
            source=f"{CLOUD}v5p; MFU: MaxText, Llama2-70B on v5p-1024",
        ),
        Chip(
            name="v6e",
            peak_flops=PEAKS["v6e"].flops,
            memory=32 * GiB,
            memory_bandwidth=1638 * GB,
            link_bandwidth=800 * GB / 8,
            dcn_bandwidth=100 * GB / 8,
            shapes=_FLAT,
            torus_from=16,
            cores_per_chip=1,
            compiler_name="v6e",
            published_mfu=(0.39, 0.50),
            source=f"{CLOUD}v6e; network: 25.6 Tb/s a pod of 256; MFU: MaxText, Llama3.1 8B to 405B on v6e-256",
        ),
    )
}
