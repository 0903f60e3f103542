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
    batch: Mapping[str, np.ndarray], batch_size: int, sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
    """Assembles global arrays from the rows that each process brings.

    Args:
      batch: this process's rows, by name.
      batch_size: global.
      sharding: of the leading axis; every process calls this with the same one.
    """
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def process_rows(sharding: jax.sharding.Sharding, batch_size: int) -> tuple[int, int]:
    """Which part of each global batch this process must bring: `(index, count)` for `Batches`.

    With the batch spread over all processes these are the process's own index and count; where a model axis spans
    processes, those that hold the same rows get the same index.

    Raises:
      UserError: where the batch does not divide over the devices, or the mesh gives a process rows that do not lie
        together.
    """
    try:
        everywhere = sharding.devices_indices_map((batch_size,))
    except ValueError as error:
        raise UserError(f"a batch of {batch_size} does not divide over the mesh: {error}") from error
    process = jax.process_index()
    return _part({d: i for d, (i,) in everywhere.items() if d.process_index == process}, batch_size)


def _part(rows_of: Mapping[Any, slice], batch_size: int) -> tuple[int, int]:
    pieces = sorted({rows.indices(batch_size)[:2] for rows in rows_of.values()})
    start, stop = pieces[0][0], pieces[-1][1]
    together = all(before[1] == after[0] for before, after in zip(pieces, pieces[1:], strict=False))
    size = stop - start
    if not together or batch_size % size or start % size:
        raise UserError(
            "the mesh gives this process rows of the batch that do not lie together: order the devices so "
            "that the data axis runs over processes first"
        )
    return start // size, batch_size // size
