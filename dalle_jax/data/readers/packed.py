"""Texts of an index in one piece of memory: as Python's objects they would take several times as much."""

import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from dalle_jax.data.captions import Captions
from dalle_jax.data.records import BadReason


class Texts(Sequence[str]):
    """Strings, of eight bytes each beside their UTF-8."""

    def __init__(self, texts: Iterable[str] = ()):
        self._data, self._ends = bytearray(), array.array("Q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Adds one, with the surrogates that it may hold."""
        self._data += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # IndexError, and indices from the end
        return self._data[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


class PackedCaptions(Sequence[Captions]):
    """The captions of every image, and why there are none where they cannot be read."""

    def __init__(self, captions: Iterable[Captions]):
        self._texts, self._ends = Texts(), array.array("Q", [0])
        self._faults: dict[int, BadReason] = {}
        for i, (texts, fault) in enumerate(captions):
            for text in texts:
                self._texts.append(text)
            self._ends.append(len(self._texts))
            if fault is not None:
                self._faults[i] = fault

    def captioned(self) -> int:
        """How many images have any."""
        ends = np.frombuffer(self._ends, np.uint64)
        return int(np.count_nonzero(ends[1:] > ends[:-1]))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Captions: ...
    @overload
    def __getitem__(self, index: slice) -> list[Captions]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return tuple(self._texts[self._ends[index] : self._ends[index + 1]]), self._faults.get(index)
