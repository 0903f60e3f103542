"""What comes of the suites on each data set, noted set by set, so that a bad one costs nothing but its own line."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dalle_jax.errors import UserError
from dalle_jax.training.parallel.processes import is_primary


class NotApplicable(UserError):
    """A data set has nothing of what a suite measures: no captions, or no labels."""


@dataclasses.dataclass
class Results:
    """Of one suite."""

    suite: str
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of the table."""
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    """By data set, why the suite does not apply to it."""
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """By data set, what is wrong."""

    def add(self, data: str, measure: Callable[[str], dict[str, Any]], *, may_skip: bool) -> None:
        """Measures a data set; what a person can do wrong is noted, here and on stderr, and ends nothing.

        Args:
          data: its name.
          measure: gives its row.
          may_skip: whether another suite may be meant for it, so that having nothing to measure is no failure.
        """
        try:
            self.rows.append(measure(data))
        except UserError as error:
            skips, reason = may_skip and isinstance(error, NotApplicable), " ".join(str(error).split())
            (self.skipped if skips else self.failed)[data] = reason
            if is_primary():
                said = f"note: {self.suite} skips" if skips else f"failed: {self.suite} of"
                print(f"{said} {data}: {reason}", file=sys.stderr, flush=True)

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {"results": self.rows, "skipped": self.skipped, "failed": self.failed}


def check(results: Sequence[Results], data_sets: Iterable[str]) -> None:
    """Ends an evaluation.

    Raises:
      UserError: a measurement failed, or a data set was skipped by every suite.
    """
    faults = [f"{one.suite} of {data}" for one in results for data in one.failed]
    faults += [f"all suites of {data}" for data in data_sets if all(data in one.skipped for one in results)]
    if faults:
        more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise UserError(f"not measured: {', '.join(faults[:10])}{more}; the lines above say why, and so does the JSON")
