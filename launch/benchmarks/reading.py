"""What a step's samples cost to find among 10^3, 10^5 and 10^7: tars that are not there, of tiny images.

Beside that, the seconds to split and to shuffle where the index is there, and its memory.
"""

import functools
import time
import tracemalloc

import numpy as np

from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, HeldOutBy
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.readers.webdataset_index import TarIndex
from dalle_jax.data.records import Record
from dalle_jax.data.sources import TRAIN, hold_out
from launch.benchmarks.workload import Row, Workload

BATCH_SIZE, IMAGE_SIZE = 256, 8
TAR_SIZE = 10_000
"""Samples of each."""


class _Fabricated(WebDataset):
    """The index of tars as img2dataset writes them; every record is the same image."""

    def __init__(self, size: int):
        starts = range(0, size, TAR_SIZE)
        super().__init__(
            [str(start) for start in starts],
            held_out_by=HeldOutBy.TAR_AND_KEY,
            find_index=lambda start: _index(int(start), min(TAR_SIZE, size)),
        )
        self._picture = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def __getitem__(self, index: int) -> Record:
        return Record(self._picture, (), self.key(index))


def _index(start: int, count: int) -> TarIndex:
    """Keys and places of images with `.txt` and `.json`."""
    rows = np.zeros(count, [("key", "S9"), ("hash", "<u8"), *((part, "<u4", 2) for part in ("image", "txt", "json"))])
    rows["key"] = [b"%09d" % i for i in range(start, start + count)]
    rows["hash"] = np.random.default_rng(start).integers(0, 2**64, count, np.uint64)
    return TarIndex(rows)


def batches(size: int) -> Workload:
    """Batches of `size` fabricated samples; its facts are the seconds to split these, and the memory of their order."""
    tracemalloc.start()  # NumPy's arrays too; what the process keeps of freed memory hides them from its size
    whole = _Fabricated(size)
    begun = time.perf_counter()
    train = hold_out(whole, 0.02, TRAIN)
    stream = Batches(train, batch_size=BATCH_SIZE, image_size=IMAGE_SIZE, augment=Augment.NONE, seed=0)
    start_seconds, (held, _) = time.perf_counter() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    facts = {"start_seconds": start_seconds, "bytes_per_record": held / size}
    numbers = iter(range(10**9))
    return Workload(lambda: stream[next(numbers)]["image"], items=BATCH_SIZE, facts=facts)


ROWS = tuple(
    Row(
        f"reading_1e{power}",
        f"batch {BATCH_SIZE} of 10^{power} fabricated samples in tars",
        "samples",
        functools.partial(batches, 10**power),
    )
    for power in (3, 5, 7)
)
