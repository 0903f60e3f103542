"""What a chip can compute at the most: the one table of peaks, for utilisation and for plans.

Sources, as published by the makers: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e"; NVIDIA's data
sheets of A100, H100, H200 and B200 (Tensor Core rates without sparsity, half of the rate that they print first). What
else a plan needs of a TPU stands in `launch.planning.chips`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device. The figure is the maker's, and was not measured here."""

    name: str
    device_kinds: tuple[str, ...]
    """How `jax.Device.device_kind` calls it: the whole name on TPUs, the beginning of it on GPUs."""
    flops: float
    """Dense bfloat16 operations a second, a multiply-add being two."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459e12),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12),
        Chip("A100", ("NVIDIA A100",), 312e12),
        Chip("H100-SXM", ("NVIDIA H100 80GB HBM3",), 989.4e12),
        Chip("H100-PCIe", ("NVIDIA H100 PCIe",), 756e12),
        Chip("H100-NVL", ("NVIDIA H100 NVL",), 835e12),
        Chip("H200", ("NVIDIA H200",), 989.4e12),
        Chip("B200", ("NVIDIA B200",), 2250e12),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip behind a `device_kind`; None where it is not in the table, as for every CPU."""
    for chip in CHIPS.values():
        if device_kind in chip.device_kinds:
            return chip
    for chip in CHIPS.values():
        if any(device_kind.startswith(kind) for kind in chip.device_kinds if kind.startswith("NVIDIA")):
            return chip
    return None


def peak_flops(device_kinds: list[str]) -> float | None:
    """Operations a second of devices together; None where one of them is not in the table."""
    chips = [chip_of(kind) for kind in device_kinds]
    return sum(chip.flops for chip in chips if chip is not None) if chips and all(chips) else None
