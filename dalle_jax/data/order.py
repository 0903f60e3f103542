"""In which order samples come: endlessly for training, once for an evaluation; by weight where there are several parts.

Every element is computed from its position alone, in a time and a memory that do not depend on how many there are.
"""

import fractions
import math
from collections.abc import Sequence

import grain
import numpy as np

from dalle_jax.data.mixture import Mixture
from dalle_jax.data.records import Source

_STREAM = 1 << 48  # samples, which no run reads to the end; Grain's own "without end" is too long for `len`


def endless(source: Source, seed: int) -> grain.MapDataset:
    """Indices of samples: each source is visited once an epoch of its own, in a new order each time.

    Of a mixture, any run of k samples holds its weight's share of k of each part, to a sample or two.
    """
    if not isinstance(source, Mixture):
        return _shuffled(0, len(source), seed)
    seeds = [int(np.random.SeedSequence([seed, part]).generate_state(1)[0]) for part in range(len(source.parts))]
    starts, stops = source.starts[:-1], source.starts[1:]
    orders = [_shuffled(start, stop, of) for start, stop, of in zip(starts, stops, seeds, strict=True)]
    return grain.MapDataset.select_from_datasets(orders, Turns(source.weights)).seed(seed)


def one_pass(source: Source, count: int, evenly: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices of samples in the source's order, from its start again where it is too small.

    Of a mixture, each part has its weight's share of them.

    Args:
      source: of which samples.
      count: how many.
      evenly: spread over the source (or part), instead of its first.

    Returns:
      The indices, int64 [count], and whether each sample comes for the first time, bool [count].
    """
    if not isinstance(source, Mixture):
        return _positions(count, len(source), evenly)
    turns = Turns(source.weights)
    parts = np.array([turns[k][0] for k in range(count)], np.int64)
    order, first = np.zeros(count, np.int64), np.zeros(count, bool)
    for part, start in enumerate(source.starts[:-1]):
        places = np.flatnonzero(parts == part)
        positions, first[places] = _positions(len(places), len(source.parts[part]), evenly)
        order[places] = start + positions
    return order, first


class Turns(grain.transforms.DatasetSelectionMap):
    """Which part gives element k, and the how-manieth of its own elements that is: a function of k and the weights.

    Parts are taken off one by one, each spread evenly among the parts after it: of the first k elements, the first
    part has `k - floor(k (1 - share))`. (Grain's own mix does this too, with weights rounded to a hundredth of the
    smallest; here they are what the person wrote.)
    """

    def __init__(self, weights: Sequence[float]):
        exact = [fractions.Fraction(repr(weight)) for weight in weights]  # of the decimal, not of its binary neighbour
        scale = math.lcm(*(share.denominator for share in exact))
        self._shares = tuple(int(share * scale) for share in exact)

    def __len__(self) -> int:
        return _STREAM

    def __getitem__(self, index: int) -> tuple[int, int]:
        before, after, left = index, index + 1, sum(self._shares)
        for part, share in enumerate(self._shares):
            before_rest, after_rest = before * (left - share) // left, after * (left - share) // left
            if after - after_rest > before - before_rest:
                return part, before - before_rest
            before, after, left = before_rest, after_rest, left - share
        raise AssertionError("the last part takes what is left")


class Rows(grain.transforms.DatasetSelectionMap):
    """Some rows of every batch of a stream."""

    def __init__(self, count: int, rows: Sequence[int] | np.ndarray, batch_size: int):
        """Args:
        count: elements of the stream; what does not fill a batch is left out.
        rows: which ones of each batch.
        batch_size: of the whole batches.
        """
        self._batches, self._rows, self._batch_size = count // batch_size, tuple(map(int, rows)), batch_size

    def __len__(self) -> int:
        return self._batches * len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, place = divmod(index, len(self._rows))
        return 0, batch * self._batch_size + self._rows[place]


def _shuffled(start: int, stop: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(start, stop).seed(seed).shuffle().repeat(-(-_STREAM // (stop - start)))


def _positions(count: int, size: int, evenly: bool) -> tuple[np.ndarray, np.ndarray]:
    positions = np.arange(count)
    return positions * size // count if evenly and count < size else positions % size, positions < size
