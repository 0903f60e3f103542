"""A plan as data: what a run of a config on a topology would need, what follows from it, and its JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dalle_jax.config import from_config_dict
from launch.planning.collectives import Collective
from launch.planning.proposals import SHARE
from launch.planning.roofline import Roofline


@dataclasses.dataclass(frozen=True)
class CacheRow:
    """What the layers of one attention pattern keep of one image that is being sampled; bytes.

    Attributes:
      pattern: its name.
      layers: that have it.
      positions: image positions kept by each.
      kept: by all of them.
      read: by all of them for one token, the caption's part aside, which all images of a caption share.
    """

    pattern: str
    layers: int
    positions: int
    kept: int
    read: int


@dataclasses.dataclass(frozen=True)
class Change:
    """What would make it fit, and what the compiler then said (0: it was refused again)."""

    flags: tuple[str, ...]
    estimated_bytes: int
    measured_bytes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes, transfers and seconds are of one device; FLOPs of all of them. One step: an update, or one token of every
    image that is sampled."""

    config: str
    stage: str
    topology: str
    chips: int
    mesh: tuple[int, int, int]
    notes: tuple[str, ...]
    batch_size: int
    num_steps: int
    """Updates of the run, or tokens of an image."""
    parameters: int
    state_bytes: int
    peak_bytes: int
    memory_bytes: int
    accepted: bool
    useful_flops: float
    formula: str
    executed_flops: float
    transfers: tuple[Collective, ...]
    traffic_bytes: float
    seconds: Roofline | None
    days_at_bound: float | None
    days_published: tuple[float, float] | None
    """At the utilisation that published runs on these chips reach, the best and the worst of them."""
    compile_seconds: float
    caches: tuple[CacheRow, ...] = ()
    change: Change | None = None

    @property
    def fits(self) -> bool:
        """Whether it leaves some room: see `SHARE`."""
        return self.accepted and self.peak_bytes <= SHARE * self.memory_bytes

    @property
    def temporary_bytes(self) -> int:
        """What a step needs beside the state."""
        return self.peak_bytes - self.state_bytes

    @property
    def is_sampling(self) -> bool:
        """Whether a step is a token of every image, not an update."""
        return self.stage == "sampling"

    @property
    def executed_over_useful(self) -> float | None:
        """None where no formula says what is useful."""
        return self.executed_flops / self.useful_flops if self.useful_flops else None

    @property
    def bound(self) -> str | None:
        """What a step waits for; None where it does not fit."""
        return self.seconds.bound if self.seconds else None

    @property
    def steps_a_day(self) -> float | None:
        """Updates at the bound."""
        return self.seconds.steps_a_day if self.seconds and not self.is_sampling else None

    @property
    def drawing_seconds(self) -> float | None:
        """Of all images, at the bound."""
        return self.seconds.seconds * self.num_steps if self.seconds and self.is_sampling else None


DERIVED = ("fits", "temporary_bytes", "executed_over_useful", "bound", "steps_a_day", "drawing_seconds")
"""What the JSON of a plan says beside its fields, for programs that read it."""


def plan_dict(plan: Plan) -> dict[str, Any]:
    """A plan for `to_json`: its fields, and what follows from them."""
    return dataclasses.asdict(plan) | {name: getattr(plan, name) for name in DERIVED}


def read_plan(mapping: Mapping[str, Any], name: str) -> Plan:
    """The plan of which `plan_dict` was kept, or the fields alone.

    Args:
      mapping: read from JSON.
      name: of the plan, for messages.

    Raises:
      UserError: it is not a plan's.
    """
    return from_config_dict(Plan, {key: value for key, value in mapping.items() if key not in DERIVED}, name)
