"""What was met while batches were read: bad samples by reason, captions that were cut."""

from collections.abc import Mapping

import numpy as np

from dalle_jax.data.records import BadReason, Source
from dalle_jax.errors import UserError

REASONS = tuple(BadReason)

_FEW = 1000  # of so many samples at least, a share of bad ones is judged


class ReadCounts:
    """Sums the counts that travel with each batch, and stops a run whose data are too bad.

    They travel with the batches because these are made in other threads and processes; so the counts are those of the
    batches handed out, whatever was read ahead.
    """

    FIELDS = ("bad", "bad_index", "cut", "part")
    """Of a batch: bad int32 [rows, reasons], bad_index int64 [rows] (-1: none), cut int32 [rows], part int32 [rows]
    (which part of a mixture)."""

    def __init__(self, source: Source, max_bad_fraction: float):
        self.bad = dict.fromkeys(REASONS, 0)
        self.cut = 0
        self.read = 0
        self.of_parts = np.zeros(len(source.part_names), np.int64)
        self._source = source
        self._max_bad_fraction = max_bad_fraction
        self._examples: list[str] = []

    def add(self, counts: Mapping[str, np.ndarray]) -> None:
        """Adds one batch's counts.

        Raises:
          UserError: where more than `max_bad_fraction` of the samples read, and of the first thousand, are bad.
        """
        for reason, count in zip(REASONS, counts["bad"].sum(axis=0).tolist(), strict=True):
            self.bad[reason] += count
        total = sum(self.bad.values())
        self.cut += int(counts["cut"].sum())
        self.of_parts += np.bincount(counts["part"], minlength=len(self.of_parts))[: len(self.of_parts)]
        self.read += len(counts["cut"]) + int(counts["bad"].sum())
        for index in counts["bad_index"][counts["bad_index"] >= 0][: 3 - len(self._examples)]:
            self._examples.append(self._source.key(int(index)))
        if total > self._max_bad_fraction * max(self.read, _FEW):
            raise UserError(
                f"{total} of {self.read} samples read from {self._source.name} are bad ({describe(self.bad)}; for "
                f"example {', '.join(self._examples)}), more than config.data.max_bad_fraction="
                f"{self._max_bad_fraction} allows: mend the data or raise the limit"
            )


def describe(counts: Mapping[BadReason, int]) -> str:
    """`truncated 3, no_caption 1`: the reasons that occurred."""
    return ", ".join(f"{reason.value} {count}" for reason, count in counts.items() if count)
