"""Images, tars and sources made on the spot."""

import io
import tarfile
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from PIL import Image

from dalle_jax.data.records import Record, Source


def encoded_image(array: np.ndarray, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format, **options)
    return file.getvalue()


class ListSource(Source):
    """Records in memory; an exception among them is raised when it is read."""

    name = "a list"

    def __init__(self, records: list):
        self.records = records
        self.has_labels = all(isinstance(record, Record) and record.label is not None for record in records)

    def __len__(self):
        return len(self.records)

    def key(self, index):
        return f"key-{index}"

    def __getitem__(self, index):
        if isinstance(self.records[index], Exception):
            raise self.records[index]
        return self.records[index]


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """`png(seed, height, width)`: noise as PNG."""
    return lambda seed=0, height=8, width=8: encoded_image(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


@pytest.fixture(scope="session")
def list_source(png) -> Callable[..., ListSource]:
    """`list_source(records)`, or `list_source(n)`: n images with two captions and a label each."""

    def make(records):
        if isinstance(records, int):
            captions = [(f"image number {i}", f"the {i}th of them") for i in range(records)]
            records = [Record(png(i), texts, f"key-{i}", label=i) for i, texts in enumerate(captions)]
        return ListSource(records)

    return make


@pytest.fixture
def write_tar(tmp_path) -> Callable[..., str]:
    """`write_tar(name, {member: bytes})` -> path."""

    def write(name: str, members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> str:
        path = str(tmp_path / name)
        with tarfile.open(path, "w", format=format) as tar:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                info.mtime = 1.5 if format == tarfile.PAX_FORMAT else 1  # a fraction makes pax write extra headers
                tar.addfile(info, io.BytesIO(data))
        return path

    return write
