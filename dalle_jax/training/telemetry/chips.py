"""What a chip can do at the most: the one table that utilisation and plans are measured against.

Sources, as published by the makers: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (peak compute,
HBM and inter-chip interconnect per chip); NVIDIA's data sheets of A100, H100, H200 and B200 (Tensor Core rates without
sparsity, which is half of the rate that they print first).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device. All figures are the maker's; none was measured here."""

    name: str
    device_kinds: tuple[str, ...]
    """How `jax.Device.device_kind` calls it: the whole name on TPUs, the beginning of it on GPUs."""
    flops: float
    """Dense bfloat16 operations a second, a multiply-add being two."""
    memory_bytes: int
    memory_bandwidth: float
    """Bytes a second between the chip and its memory."""
    link_bandwidth: float
    """Bytes a second out of the chip over all its links of the fast network (ICI, NVLink), one direction."""


GIB = 2**30

CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * GIB, 1228e9, 300e9),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1640e9, 400e9),
    Chip("A100-40GB", ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"), 312e12, 40 * GIB, 1555e9, 300e9),
    Chip("A100-80GB", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 312e12, 80 * GIB, 2039e9, 300e9),
    Chip("H100-SXM", ("NVIDIA H100 80GB HBM3",), 989.4e12, 80 * GIB, 3350e9, 450e9),
    Chip("H100-PCIe", ("NVIDIA H100 PCIe",), 756e12, 80 * GIB, 2000e9, 300e9),
    Chip("H100-NVL", ("NVIDIA H100 NVL",), 835e12, 94 * GIB, 3900e9, 300e9),
    Chip("H200", ("NVIDIA H200",), 989.4e12, 141 * GIB, 4800e9, 450e9),
    Chip("B200", ("NVIDIA B200",), 2250e12, 180 * GIB, 7700e9, 900e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip behind a `device_kind`; None where it is not in the table, as for every CPU."""
    for chip in CHIPS:
        if device_kind in chip.device_kinds:
            return chip
    for chip in CHIPS:
        if any(device_kind.startswith(kind) for kind in chip.device_kinds if kind.startswith("NVIDIA")):
            return chip
    return None


def peak_flops(device_kinds: list[str]) -> float | None:
    """Operations a second of devices together; None where one of them is not in the table."""
    chips = [chip_of(kind) for kind in device_kinds]
    return sum(chip.flops for chip in chips if chip is not None) if chips and all(chips) else None


def utilisation(step_flops: float, steps_per_second: float | None, peak_flops: float | None) -> float | None:
    """Useful operations of a step x steps a second / operations a second that all devices could do.

    Useful: forward and backward by formula, a multiply-add being two; recomputation does not count. None where
    operations are not counted or the devices' peak is not known.
    """
    if not step_flops or steps_per_second is None or not peak_flops:
        return None
    return step_flops * steps_per_second / peak_flops
