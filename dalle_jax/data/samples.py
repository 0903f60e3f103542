"""One sample of a batch: a record read, its image made square, its caption made tokens."""

import dataclasses
from typing import Any

import numpy as np

from dalle_jax.data.config import Augment, Resizing, TextConfig
from dalle_jax.data.counts import REASONS, advice, describe
from dalle_jax.data.images import transforms
from dalle_jax.data.images.decode import decode
from dalle_jax.data.records import BadReason, BadSample, Encoding, Record, Source
from dalle_jax.data.tokenizer import RowTokenizer
from dalle_jax.errors import UserError

NO_TOKEN = -1
"""In place of the tokens of an image that is not encoded yet."""

_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class SampleReader:
    """Makes sample `index` of a source, or another in its place. Picklable, for worker processes."""

    source: Source
    image_size: int
    augment: Augment
    max_pixels: int
    tokenizer: RowTokenizer | None = None
    text: TextConfig | None = None
    resizing: Resizing = Resizing()

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Reads, augments and encodes one sample; all that is random comes from `rng`.

        A bad sample is replaced by another that `rng` draws, so that which one takes its place is a function of the
        run's seed and of the position, as everything else is.

        Returns:
          `image` uint8 [S, S, 3] where the source has images; `image_tokens` int32 [G] where it has tokens; `text`
          int32 [T] where there is a tokenizer; `label` int32 where the source has labels. Of a source that has both,
          a sample with tokens has a black image, and one with an image `NO_TOKEN` for tokens. And for the counts:
          `bad` int32 [reasons], `bad_index` int64 [reasons] (of the first bad sample met, -1 if none), `cut` int32 (1
          where the caption was cut), `part` int32; see `ReadCounts`.

        Raises:
          UserError: where no readable sample is found in a hundred attempts.
        """
        bad = np.zeros(len(REASONS), np.int32)
        bad_index = np.full(len(REASONS), -1, np.int64)
        for _ in range(_ATTEMPTS):
            try:
                sample = self._sample(self.source[index], rng)
            except BadSample as error:
                reason = REASONS.index(error.reason)
                bad[reason] += 1
                if bad_index[reason] < 0:
                    bad_index[reason] = index
                among = self.source.alternatives(index)
                index = int(rng.integers(among.start, among.stop))
            else:
                part = np.int32(self.source.part_of(index))
                return sample | {"bad": bad, "bad_index": bad_index, "part": part}
        raise UserError(
            f"{_ATTEMPTS} samples of {self.source.name} in a row cannot be used "
            f"({describe(bad.tolist(), bad_index.tolist(), self.source)}): {advice(bad.tolist())}"
        )

    def _sample(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        sample: dict[str, Any] = {"cut": np.int32(0)}
        if self.tokenizer is not None and self.text is not None:
            sample |= self._encode(record, self.tokenizer, self.text, rng)
        if self.source.has_images:
            sample["image"] = self._square(record, rng)
        if self.source.encoding is not None:
            sample["image_tokens"] = self._tokens(record, self.source.encoding, rng)
        if self.source.has_labels:
            if record.label is None or not -(2**31) <= record.label < 2**31:
                raise BadSample(BadReason.NO_LABEL, f"{record.key} has the label {record.label}")
            sample["label"] = np.int32(record.label)
        return sample

    def _square(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        if record.tokens is not None:
            return np.zeros((self.image_size, self.image_size, 3), np.uint8)
        image = decode(
            record.image,
            max_pixels=self.max_pixels,
            shrink_to=transforms.shrink_to(self.augment, self.image_size),
        )
        return transforms.make_transform(self.augment, self.image_size, self.resizing)(image, rng)

    @staticmethod
    def _tokens(record: Record, encoding: Encoding, rng: np.random.Generator) -> np.ndarray:
        if record.tokens is None:
            return np.full(encoding.grid_size**2, NO_TOKEN, np.int32)
        return record.tokens[int(rng.integers(len(record.tokens)))]

    @staticmethod
    def _encode(record: Record, tokenizer: RowTokenizer, text: TextConfig, rng: np.random.Generator) -> dict[str, Any]:
        if not record.captions:
            raise BadSample(record.captions_fault or BadReason.NO_CAPTION)
        caption = record.captions[int(rng.integers(len(record.captions)))]
        ids, cut = tokenizer.row(caption, text, seed=int(rng.integers(2**31)))
        return {"text": ids, "cut": np.int32(cut)}
