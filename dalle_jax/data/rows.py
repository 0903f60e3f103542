"""Rows in which a name comes again: columns of one name, keys of one object."""

from collections.abc import Iterable
from typing import Any


class Several(list[Any]):
    """What a row has under one name, where it has that name several times."""


def row_of(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A row of names and values, in their order; of a name that comes again it has all values, as `Several`."""
    pairs = list(pairs)
    row = dict(pairs)
    if len(row) < len(pairs):
        values: dict[str, Several] = {name: Several() for name in row}
        for name, value in pairs:
            values[name].append(value)
        row |= {name: found for name, found in values.items() if len(found) > 1}
    return row
