"""Batches that are on the device before they are asked for, and which rows of them this process brings."""

import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeVar

import grain
import jax
import numpy as np
from absl import flags

from dalle_jax.errors import UserError

_MAX_THREADS = 8

T = TypeVar("T")
U = TypeVar("U")


def read_ahead(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """The elements in order, made by threads of this process or by worker processes."""
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain hands its flags to the workers; outside `app.run` nobody parsed them
        one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        options = grain.MultiprocessingOptions(num_workers=workers)
        return dataset.to_iter_dataset(one).mp_prefetch(options, worker_init_fn=_leave_signals_to_parent)
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))


def _leave_signals_to_parent(index: int, count: int) -> None:
    """A terminal and Slurm signal every process of a job: the parent still needs its workers while it saves."""
    del index, count
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)


def compute_ahead(items: Iterable[T], function: Callable[[T], U], size: int) -> Generator[U, None, None]:
    """Yields `function(item)` of every item, computed up to `size` items ahead in a thread.

    What the thread raises is raised here, in its place in the order. Closing the iterator ends the thread.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=size)
    closed = threading.Event()

    def put(value: Any, error: BaseException | None) -> None:
        while not closed.is_set():
            try:
                return ready.put((value, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(function(item), None)
                if closed.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield value
    finally:
        closed.set()
        thread.join(timeout=5.0)


def to_global(
    batch: Mapping[str, np.ndarray], rows: np.ndarray, batch_size: int, sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
    """Assembles global arrays from the rows that each process brings.

    Args:
      batch: this process's rows, by name.
      rows: which ones of the global batch they are, ascending.
      batch_size: global.
      sharding: of the leading axis; every process calls this with the same one.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)  # elsewhere it would compare the rows of all processes, every time

    def place(local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return local[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    return {name: place(local) for name, local in batch.items()}


def process_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Which rows of each global batch the devices of this process hold, int64, ascending: what it must read.

    They need not lie together: a host of a TPU pod has a square of chips, which a mesh may cut into rows. Where a model
    axis spans processes, several hold the same ones.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    try:
        everywhere = sharding.devices_indices_map((batch_size,))
    except ValueError as error:
        raise UserError(f"a batch of {batch_size} does not divide over the mesh: {error}") from error
    return rows_of(everywhere, batch_size, jax.process_index())


def rows_of(everywhere: Mapping[Any, tuple[slice, ...]], batch_size: int, process: int) -> np.ndarray:
    """`process_rows` of any process, from the parts of the batch that the devices hold."""
    pieces = {rows.indices(batch_size)[:2] for device, (rows,) in everywhere.items() if device.process_index == process}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(pieces)])
