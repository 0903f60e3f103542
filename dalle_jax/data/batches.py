"""Deterministic batches: batch n is a function of (seed, n), whatever the number of processes and workers."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from dalle_jax.data import order
from dalle_jax.data.captions import require_captions
from dalle_jax.data.config import BICUBIC, Augment, DataConfig, Resizing, TextConfig
from dalle_jax.data.counts import ReadCounts
from dalle_jax.data.mixture import parts_of
from dalle_jax.data.prefetch import compute_ahead, read_ahead, to_global
from dalle_jax.data.records import Source
from dalle_jax.data.samples import SampleReader
from dalle_jax.data.tokenizer import RowTokenizer
from dalle_jax.errors import UserError


class Batches:
    """An endless sequence of training batches, and the passes over a held-out split.

    `batches[n]` is `{"image": uint8 [len(rows), S, S, 3], "text": int32 [.., T], "label": int32 [..]}`: the rows of
    global batch n that this process brings (`text` where there is a tokenizer, `label` where the source has
    labels; `image_tokens` int32 [.., G] in place of `image` where it was encoded beforehand, see `SampleReader`).
    Samples are drawn without replacement within an epoch, in a new order each epoch; a batch may straddle two, and
    each part of a mixture has epochs of its own (`order`). Element j of the stream depends on (seed, j) alone, so
    that a run resumed at step n reads what it would have read.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: int,
        augment: Augment,
        seed: int,
        tokenizer: RowTokenizer | None = None,
        text: TextConfig | None = None,
        rows: Sequence[int] | np.ndarray | None = None,
        workers: int = 0,
        prefetch: int = DataConfig.prefetch,
        max_bad_fraction: float = DataConfig.max_bad_fraction,
        max_pixels: int = DataConfig.max_pixels,
        resizing: Resizing = BICUBIC,
    ):
        """Args:
          source: what to read.
          batch_size: global.
          image_size: S, pixels a side.
          augment: how images become square.
          seed: of order, augmentation, choice of caption and BPE dropout.
          tokenizer: None: images alone, captions are not looked at.
          text: how captions are encoded; given with the tokenizer.
          rows: which rows of each batch this process brings, ascending (`prefetch.process_rows`); None: all.
          workers: processes that decode; 0: threads of this one.
          prefetch: batches that wait on the device.
          max_bad_fraction: reading stops with a `UserError` where more of the samples than this are bad.
          max_pixels: larger images are bad samples.
          resizing: what CLIP's ways to a square leave open.

        Raises:
          UserError: where the source is empty, or captions are asked for and there are none.
        """
        if not len(source):
            raise UserError(f"{source.name} is empty: there is nothing to read")
        if (tokenizer is None) != (text is None):
            raise ValueError("`tokenizer` and `text` go together")
        if tokenizer is not None:
            for part in parts_of(source):
                require_captions(part)
        self.source = source
        self.batch_size = batch_size
        self._seed = seed
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        self._workers = workers
        self._prefetch = prefetch
        self._counts = ReadCounts(source, max_bad_fraction)
        self._reader = SampleReader(
            source=source,
            image_size=image_size,
            augment=augment,
            max_pixels=max_pixels,
            tokenizer=tokenizer,
            text=text,
            resizing=resizing,
        )
        self._dataset = self._batched(order.endless(source, seed).random_map(self._reader))

    @property
    def bad_counts(self) -> dict[str, int]:
        """Bad samples by reason, of the batches that this process has been handed so far."""
        return {reason.value: count for reason, count in self._counts.bad.items()}

    @property
    def captions_cut(self) -> int:
        """Captions that were longer than the text, among the same batches."""
        return self._counts.cut

    @property
    def part_counts(self) -> dict[str, int]:
        """Samples of each part of a mixture, among the same batches."""
        return dict(zip(self.source.part_names, self._counts.of_parts.tolist(), strict=True))

    def __getitem__(self, n: int) -> dict[str, np.ndarray]:
        """Batch n, this process's rows."""
        batch: Any = self._dataset[n]
        self._counts.add({name: batch.pop(name) for name in ReadCounts.FIELDS})
        return batch

    def iterate(
        self, start: int = 0, *, sharding: jax.sharding.Sharding | None = None
    ) -> Iterator[dict[str, jax.Array]]:
        """Yields global batches `start`, `start` + 1, ... without end.

        Args:
          start: the step to resume at.
          sharding: of the batch axis; None: this process's rows on its first device.
        """
        return self._deliver(self._dataset[start:], sharding, self._workers)

    def epoch(
        self, num_batches: int | None = None, *, sharding: jax.sharding.Sharding | None = None
    ) -> Iterator[dict[str, jax.Array]]:
        """Yields a finite pass of batches of one shape in the source's order, the same ones at every call.

        A batch holds `mask` too, bool [B]: False for the rows that must not count, since their sample is there already.
        Those fill up the last batch, from the start of the source again, or stand in for a bad sample. Of a mixture,
        each part gives its weight's share, or all that it has.

        Args:
          num_batches: at the most; the samples are then spread evenly over the source instead of being its first. None:
            as many as the samples need.
          sharding: as in `iterate`.
        """
        needed = -(-len(self.source) // self.batch_size)
        count = needed if num_batches is None else min(num_batches, needed)
        indices, first = order.one_pass(self.source, count * self.batch_size, evenly=count < needed)
        samples = grain.MapDataset.source(indices.tolist()).seed(self._seed).random_map(self._reader)
        samples = samples.map_with_index(functools.partial(_masked, first))
        # Threads are enough for a short pass, and worker processes take seconds to start.
        return self._deliver(self._batched(samples), sharding, workers=0)

    def _batched(self, samples: grain.MapDataset) -> grain.MapDataset:
        # Every process walks the same global stream, whose samples know their places in it.
        if len(self._rows) < self.batch_size:
            samples = grain.MapDataset.select_from_datasets(
                [samples], order.Rows(len(samples), self._rows, self.batch_size)
            )
        return samples.batch(len(self._rows))

    def _deliver(
        self, dataset: grain.MapDataset, sharding: jax.sharding.Sharding | None, workers: int
    ) -> Iterator[dict[str, jax.Array]]:
        rows, batch_size = self._rows, self.batch_size
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            rows, batch_size = np.arange(len(rows)), len(rows)

        def place(batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
            counts = {name: batch.pop(name) for name in ReadCounts.FIELDS}
            return counts, to_global(batch, rows, batch_size, sharding)

        with contextlib.closing(compute_ahead(read_ahead(dataset, workers), place, self._prefetch)) as placed:
            for counts, batch in placed:
                self._counts.add(counts)
                yield batch


def _masked(first: np.ndarray, place: int, sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of a pass with its `mask`: it is the one of its place, and there for the first time."""
    return sample | {"mask": first[place] & np.all(sample["bad_index"] < 0)}
