"""Several sources as one."""

import bisect
import itertools
from collections.abc import Sequence

import numpy as np

from dalle_jax.data.records import Record, Source
from dalle_jax.errors import UserError


class Mixture(Source):
    """The records of several sources, one source after the other; `order` draws from them by weight."""

    def __init__(self, parts: Sequence[Source], names: Sequence[str], weights: Sequence[float]):
        """Args:
          parts: at least one, none of them a mixture.
          names: of the parts, for the metrics.
          weights: of the parts, above 0, with any sum.

        Raises:
          UserError: a part is empty, or two hold tokens of different codecs.
        """
        for part, name in zip(parts, names, strict=True):
            if not len(part):
                raise UserError(f"part '{name}' of the mixture, {part.name}, is empty: there is nothing to read")
        self.parts, self.part_names, self.weights = tuple(parts), tuple(names), tuple(weights)
        self.name = "mixture of " + ", ".join(names)
        self.class_names = parts[0].class_names if len({part.class_names for part in parts}) == 1 else ()
        # Label 3 of one data set is another class than label 3 of the next, unless both say that it is not.
        self.has_labels = all(part.has_labels for part in parts) and (len(parts) == 1 or bool(self.class_names))
        self.has_images = any(part.has_images for part in parts)
        self.encoding = _common_encoding(parts, names)
        self.starts = (0, *itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Record:
        part = self.part_of(index)
        return self.parts[part][index - self.starts[part]]

    def key(self, index: int) -> str:
        part = self.part_of(index)
        return f"{self.part_names[part]}/{self.parts[part].key(index - self.starts[part])}"

    def captions(self, index: int) -> tuple[str, ...]:
        part = self.part_of(index)
        return self.parts[part].captions(index - self.starts[part])

    def key_hashes(self) -> np.ndarray:
        return np.concatenate([part.key_hashes() for part in self.parts])

    def part_of(self, index: int) -> int:
        return bisect.bisect_right(self.starts, index) - 1

    def alternatives(self, index: int) -> range:
        part = self.part_of(index)
        return range(self.starts[part], self.starts[part + 1])


def parts_of(source: Source) -> tuple[Source, ...]:
    """The parts of a mixture; any other source is the only part of itself."""
    return source.parts if isinstance(source, Mixture) else (source,)


def _common_encoding(parts: Sequence[Source], names: Sequence[str]):
    encoded = [(part.encoding, name) for part, name in zip(parts, names, strict=True) if part.encoding is not None]
    for encoding, name in encoded[1:]:
        if encoding != encoded[0][0]:
            raise UserError(
                f"parts '{encoded[0][1]}' and '{name}' of the mixture were encoded by different codecs: encode one of "
                "them again with the codec of the other"
            )
    return encoded[0][0] if encoded else None
