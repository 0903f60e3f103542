"""TPU slices and cluster GPUs by name: what Google's tools call them. `python -m launch.cluster.accelerators v5e-256`.

Needs nothing but Python, so that the starters run where dalle-jax is not installed.
"""

import dataclasses
import re
import sys

from dalle_jax.errors import UserError, closest, run_main

GRID = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
TORUS = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPUs. Sources: Google's pages "TPU software versions" and "TPUs in GKE"."""

    runtime_version: str
    """Software of its virtual machines."""
    prefix: str
    """Of its accelerator types."""
    gke_accelerator: str
    """Label of its GKE nodes."""
    cores_per_chip: int
    """The number in a v4's or v5p's name counts cores, that in a v5e's or v6e's chips."""
    topologies: dict[int, str]
    """By number of chips."""


GENERATIONS = {
    "v4": Generation("tpu-ubuntu2204-base", "v4", "tpu-v4-podslice", 2, TORUS),
    "v5e": Generation("v2-alpha-tpuv5-lite", "v5litepod", "tpu-v5-lite-podslice", 1, GRID),
    "v5p": Generation("v2-alpha-tpuv5", "v5p", "tpu-v5p-slice", 2, TORUS),
    "v6e": Generation("v2-alpha-tpuv6e", "v6e", "tpu-v6e-slice", 1, GRID),
}

GPUS = {
    "l4": "nvidia-l4",
    "a100": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
"""Labels of GKE nodes."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """A TPU slice."""

    generation: Generation
    chips: int

    @property
    def accelerator_type(self) -> str:
        """As `gcloud compute tpus` and `xpk` call it."""
        return f"{self.generation.prefix}-{self.chips * self.generation.cores_per_chip}"

    @property
    def topology(self) -> str:
        """Chips along each axis, as Google writes them: `4x4x8`."""
        return self.generation.topologies[self.chips]

    @property
    def hosts(self) -> int:
        """Machines of four chips, of which GKE makes every slice that is not smaller."""
        return max(self.chips // 4, 1)


def parse_slice(name: str) -> Slice:
    """The slice `v5e-256`, which may also be written as Google does, `v5litepod-256`.

    Raises:
      UserError: there is no such generation, or no slice of that size.
    """
    match = re.fullmatch(r"(\w+)-(\d+)", name.replace("v5litepod", "v5e"))
    if match is None or match[1] not in GENERATIONS:
        near = closest(name.split("-")[0], GENERATIONS)
        raise UserError(f"there is no TPU slice '{name}'{near}: write v4-N, v5e-N, v5p-N or v6e-N, as in v5e-256")
    generation, count = GENERATIONS[match[1]], int(match[2])
    sizes = [chips * generation.cores_per_chip for chips in generation.topologies]
    if count not in sizes:
        raise UserError(f"there is no slice {match[1]}-{count}: N is one of {', '.join(map(str, sizes))}")
    return Slice(generation, count // generation.cores_per_chip)


def main() -> None:
    """Prints accelerator type and runtime version, for `launch/tpu_vm.sh`."""
    if len(sys.argv) != 2:
        raise UserError("give one slice, as in python -m launch.cluster.accelerators v5e-256")
    tpu = parse_slice(sys.argv[1])
    print(tpu.accelerator_type, tpu.generation.runtime_version)


if __name__ == "__main__":
    run_main(main)
