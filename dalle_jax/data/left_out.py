"""Counts what is found beside the samples of a source and is not among them."""

from collections.abc import Iterable

from dalle_jax.data.records import LeftOut


class Tally:
    """Counts by reason; the first example of each is kept."""

    def __init__(self):
        self._found: dict[str, LeftOut] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Counts one thing, or several; `reason` and `example` as in `LeftOut`."""
        before = self._found.get(reason, LeftOut(reason, 0, example))
        self._found[reason] = LeftOut(reason, before.count + count, before.example)

    def found(self) -> tuple[LeftOut, ...]:
        """What was counted, in the order in which the reasons came up."""
        return tuple(self._found.values())


def in_words(left_out: Iterable[LeftOut]) -> list[str]:
    """A text for each reason: `members of other extensions: 12, such as readme.md in 0.tar`."""
    return [
        f"{found.reason}: {found.count:,}{', such as' if found.count > 1 else ','} {_shown(found.example)}"
        for found in left_out
    ]


def _shown(name: str) -> str:
    """A file's name that a terminal can take: it may hold line breaks, or bytes that are not UTF-8."""
    return name if name.isprintable() else ascii(name)[1:-1]
