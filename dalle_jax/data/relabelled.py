"""Labels that count in another order of the same classes, found by their names."""

import dataclasses
from collections.abc import Sequence

from dalle_jax.data.records import Record, Source


class Relabelled(Source):
    """The records of a source, whose labels are places in other names than its own."""

    def __init__(self, source: Source, names: Sequence[str]):
        """Args:
        source: that knows what its classes are called.
        names: all of these, and others.
        """
        places = {name: place for place, name in enumerate(names)}
        self._source, self._places = source, [places[name] for name in source.class_names]
        self.name, self.has_labels, self.class_names = source.name, source.has_labels, tuple(names)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        label = None if record.label is None else self._place(record.label)
        labels = None if record.labels is None else tuple(map(self._place, record.labels))
        return dataclasses.replace(record, label=label, labels=labels)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def _place(self, label: int) -> int:
        """A label that is not a class (-1 of unlabelled splits) stays, for a reader to refuse."""
        return self._places[label] if 0 <= label < len(self._places) else label
