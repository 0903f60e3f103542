"""Writes webdataset tars."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_shard(path: Path, shard: Sequence[Mapping[str, bytes]]) -> None:
    """Writes a tar whose bytes depend on the samples alone; a reader sees all of it or nothing.

    Args:
      path: of the tar.
      shard: of each sample its files by extension, in their order, and its key under "key".
    """
    temporary = path.with_suffix(".tmp")
    with tarfile.open(temporary, "w") as tar:
        for sample in shard:
            for extension in (name for name in sample if name != "key"):
                member = tarfile.TarInfo(f"{sample['key'].decode()}.{extension}")
                member.size = len(sample[extension])
                tar.addfile(member, io.BytesIO(sample[extension]))
    temporary.replace(path)
