"""Keeps what has been sampled, so that a run that was stopped goes on from there."""

import io
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from dalle_jax.config import config_hash
from dalle_jax.storage import write_whole
from dalle_jax.training.parallel.processes import gather, is_primary


class Chunk(NamedTuple):
    """Some candidates of some prompts, as they were sampled."""

    tokens: Int[np.ndarray, "C P G"]
    scores: Float[np.ndarray, "C P"]


@runtime_checkable
class ChunkStore(Protocol):
    """Where finished chunks are kept, so that a stopped run need not sample them again."""

    def get(self, prompts: slice, candidates: slice) -> Chunk | None:
        """A chunk of an earlier run with the same settings, if there is one."""
        ...

    def put(self, prompts: slice, candidates: slice, chunk: Chunk) -> None:
        """Keeps a chunk."""
        ...


def stored_chunk(store: ChunkStore | None, prompts: slice, candidates: slice) -> Chunk | None:
    """A chunk that was kept, where all processes find it: those that do not must not sample alone."""
    if store is None:
        return None
    chunk = store.get(prompts, candidates)
    return chunk if all(gather(chunk is not None)) else None


class FolderStore(ChunkStore):
    """Chunks as files, under the hash of all that decides what is sampled."""

    def __init__(self, folder: epath.Path, settings: Mapping[str, Any]):
        """Args: folder: of the results; settings: plain values, in which runs with other samples differ."""
        self.folder = folder / "drawn" / config_hash(settings)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, prompts: slice, candidates: slice) -> epath.Path:
        name = f"prompts_{prompts.start}-{prompts.stop}_candidates_{candidates.start}-{candidates.stop}.npz"
        return self.folder / name

    def get(self, prompts: slice, candidates: slice) -> Chunk | None:
        """The chunk, if it was kept whole."""
        path = self._path(prompts, candidates)
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes())) as arrays:
                return Chunk(arrays["tokens"], arrays["scores"])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # A crash of the machine can leave it damaged.
            return None

    def put(self, prompts: slice, candidates: slice, chunk: Chunk) -> None:
        """Writes the chunk, by the first of several processes."""
        if not is_primary():
            return
        encoded = io.BytesIO()
        np.savez_compressed(encoded, tokens=chunk.tokens, scores=chunk.scores)
        write_whole(self._path(prompts, candidates), encoded.getvalue())
