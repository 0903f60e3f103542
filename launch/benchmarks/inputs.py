"""The input pipeline on one core: JPEGs of 512x512 to batches of 256x256."""

import io
from typing import Any

import numpy as np
from PIL import Image

from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment
from dalle_jax.data.records import Record, Source
from launch.benchmarks.workload import Row, Workload, import_torch

BATCH_SIZE, IMAGE_SIZE = 64, 256


def jpeg() -> bytes:
    """A smooth image with some detail, as photographs are; about 60 kB."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(encoded, "jpeg", quality=90)
    return encoded.getvalue()


class _Copies(Source):
    """One image many times."""

    name = "one JPEG"

    def __init__(self):
        self._jpeg = jpeg()

    def __len__(self) -> int:
        return 100 * BATCH_SIZE

    def __getitem__(self, index: int) -> Record:
        return Record(self._jpeg, (), self.key(index))

    def key(self, index: int) -> str:
        return str(index)


def batches() -> Workload:
    """Batches of decoded, augmented images and tokenized captions."""
    source = Batches(
        _Copies(),
        batch_size=BATCH_SIZE,
        image_size=IMAGE_SIZE,
        augment=Augment.DALLE,
        seed=0,
        tokenizer=None,
        text=None,
    )
    numbers = iter(range(10**9))
    return Workload(lambda: source[next(numbers)]["image"], items=BATCH_SIZE)


def peer_batches() -> Workload:
    """The same by open_clip's transforms and PyTorch's loader."""
    import_torch()
    import open_clip

    transform: Any = open_clip.image_transform(IMAGE_SIZE, is_train=True)
    data = jpeg()

    def run() -> None:
        for _ in range(BATCH_SIZE):
            transform(Image.open(io.BytesIO(data), formats=["JPEG"]))

    return Workload(run, items=BATCH_SIZE)


ROWS = (
    Row(
        name="input",
        shape="JPEG 512 to 256 crop, batch 64, one core",
        unit="images",
        make=batches,
        make_peer=peer_batches,
        peer="open_clip's training transform",
        reach=1.0,
    ),
)
