"""The shortest time that a step can take: what compute, memory and links each need, and which needs most."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from launch.planning.collectives import Collective
from launch.planning.topologies import Topology

DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step by what limits them; each is a lower bound, as if the others took no time.

    Attributes:
      compute: executed FLOPs at the chip's peak, those of float32 six times.
      memory: bytes read and written at the memory's bandwidth.
      links: bytes sent within slices, one transfer after another, each at the bandwidth of the links along its axes.
      network: bytes sent between slices.
    """

    compute: float
    memory: float
    links: float
    network: float

    @property
    def bound(self) -> str:
        """The resource that needs most time."""
        seconds = dataclasses.asdict(self)
        return max(seconds, key=lambda name: seconds[name])

    @property
    def seconds(self) -> float:
        """Of a step that hides everything behind its bound."""
        return max(dataclasses.astuple(self))

    @property
    def steps_a_day(self) -> float:
        """As many as fit, if nothing comes between."""
        return DAY / self.seconds


def roofline(
    topology: Topology, mesh: Mesh, passes: float, memory_bytes: float, transfers: Sequence[Collective]
) -> Roofline:
    """Bounds of one step.

    Args:
      topology: the chips.
      mesh: their arrangement, on which `transfers` name axes.
      passes: see `FlopCount`; of all chips together.
      memory_bytes: of one chip.
      transfers: of one chip, see `collectives`.
    """
    chip = topology.chip
    links = network = 0.0
    for transfer in transfers:
        if transfer.within:
            links += transfer.within / topology.link_bandwidth(mesh, transfer.axes)
        network += transfer.between / topology.family.network_bandwidth
    return Roofline(
        compute=passes / topology.num_chips / chip.flops,
        memory=memory_bytes / chip.memory_bandwidth,
        links=links,
        network=network,
    )


def days(num_steps: int, useful_flops: float, topology: Topology, utilisation: float) -> float:
    """Days of a run that turns a share of the chips' peak into useful FLOPs (MFU).

    Args:
      num_steps: of the run.
      useful_flops: of one step, all chips together.
      topology: the chips.
      utilisation: useful FLOPs over peak.
    """
    return num_steps * useful_flops / (topology.num_chips * topology.chip.flops * utilisation) / DAY
