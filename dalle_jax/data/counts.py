"""What was met while batches were read: bad samples by reason, captions that were cut."""

from collections.abc import Iterable, Mapping

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
    """Of a batch: bad int32 [rows, reasons], bad_index int64 [rows, reasons] (of the first bad sample; -1: none),
    cut int32 [rows], part int32 [rows] (which part of a mixture)."""

    def __init__(self, source: Source, max_bad_fraction: float):
        self.bad = dict.fromkeys(REASONS, 0)
        self.cut = 0
        self.read = 0
        self.of_parts = np.zeros(len(source.part_names), np.int64)
        self._source = source
        self._max_bad_fraction = max_bad_fraction
        self._examples = np.full(len(REASONS), -1)

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
        for row in counts["bad_index"]:
            self._examples = np.where(self._examples < 0, row, self._examples)
        if total > self._max_bad_fraction * max(self.read, _FEW):
            raise UserError(
                f"{total} of {self.read} samples read from {self._source.name} are bad "
                f"({describe(self.bad.values(), self._examples.tolist(), self._source)}), more than "
                f"config.data.max_bad_fraction={self._max_bad_fraction} allows: {advice(self.bad.values())}, or raise "
                "the limit"
            )


def describe(counts: Iterable[int], examples: Iterable[int], source: Source) -> str:
    """`truncated 3, such as a; no_caption 1, such as b`: the reasons that occurred.

    Args:
      counts: by reason, in the order of `REASONS`.
      examples: indices in the source, likewise.
      source: of the samples.
    """
    said = [
        f"{reason.value} {count}, such as {source.key(int(example))}"
        for reason, count, example in zip(REASONS, counts, examples, strict=True)
        if count
    ]
    return "; ".join(said)


def advice(counts: Iterable[int]) -> str:
    """What to do about samples that are bad for these reasons; see `describe`."""
    pointers = dict(zip(REASONS, counts, strict=True))[BadReason.LFS_POINTER]
    return "fetch what the pointers of Git LFS stand for with `git lfs pull`" if pointers else "check the data"
