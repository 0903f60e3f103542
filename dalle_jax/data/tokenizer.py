"""The text tokenizer: byte-pair encoding of lower-cased captions with SentencePiece."""

import functools
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import sentencepiece
from etils import epath
from jaxtyping import Int32

from dalle_jax.data.bpe import Merges
from dalle_jax.data.config import TextConfig
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path, write_whole

_log = logging.getLogger(__name__)

PAD, UNKNOWN, START, END = range(4)

_LONGEST = 1 << 16  # bytes of a text; SentencePiece passes over longer ones without a word
_NO_CAPTIONS = "there are no captions to train a tokenizer on: check the data's captions"


@runtime_checkable
class RowTokenizer(Protocol):
    """What batches need of a tokenizer: `Tokenizer` below, or one that a published model brings. Picklable."""

    @property
    def vocab_size(self) -> int:
        """Entries, special ones among them."""

    @property
    def end_id(self) -> int:
        """Of end-of-text."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal tokenizers."""
        ...

    def row(self, caption: str, text: TextConfig, seed: int) -> tuple[Int32[np.ndarray, " T"], bool]:
        """The ids of one caption, `text.length` of them, and whether it was cut; a function of the arguments alone."""
        ...


class Tokenizer:
    """Turns captions into token ids and back. Ids 0 to 3 are pad, unknown, start-of-text and end-of-text.

    Captions are normalised (NFKC) and lower-cased by rules that the model file carries. Picklable.
    """

    end_id = END

    def __init__(self, model: epath.PathLike | bytes):
        """Loads a model.

        Args:
          model: the path of a `tokenizer.model`, or its content.

        Raises:
          UserError: where the file is missing or is not a model of `train_tokenizer`.
        """
        where = "this model" if isinstance(model, bytes) else os.fspath(model)
        if not isinstance(model, bytes):
            try:
                model = as_path(model).read_bytes()
            except OSError as error:
                raise UserError(
                    f"there is no tokenizer at {where} ({error.strerror or error}): train one with "
                    "python -m launch.tokenizer"
                ) from error
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise UserError(f"{where} is not a SentencePiece model") from error
        processor = self._processor
        special = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        if special != (PAD, UNKNOWN, START, END):
            raise UserError(
                f"{where} has other special ids than pad 0, unknown 1, start 2, end 3 (it has {special}): "
                "train it with python -m launch.tokenizer"
            )
        self.model = model
        """Content of the model file."""

    def __reduce__(self):
        return Tokenizer, (self.model,)

    @property
    def vocab_size(self) -> int:
        """Entries, special ones among them."""
        return self._processor.vocab_size()

    @property
    def fingerprint(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the model file: equal for equal tokenizers."""
        return hashlib.sha256(self.model).hexdigest()[:12]

    @functools.cached_property
    def _merges(self) -> Merges:
        return Merges(self._processor)

    def pieces(self, text: str, *, dropout: float = 0.0, seed: int | None = None, most: int | None = None) -> list[int]:
        """Token ids of one text, without start, end or pads.

        Args:
          text: any string that UTF-8 can hold.
          dropout: probability with which each merge is left out (BPE dropout, Provilkov et al. 2020).
          seed: of the dropout; the ids are a function of (text, dropout, seed) in every thread and process.
          most: ids after so many may be missing, which saves the work for them.

        Raises:
          UserError: the text holds bytes that are no text.
        """
        check_text(text)
        if dropout == 0.0:
            return self._processor.encode(text)
        if seed is None:
            raise ValueError("BPE dropout needs a seed")
        return self._merges.encode(text, dropout, seed, most)

    def encode(
        self,
        texts: Sequence[str],
        length: int,
        *,
        end: bool = False,
        dropout: float = 0.0,
        seed: int | None = None,
    ) -> Int32[np.ndarray, "n length"]:
        """Encodes texts into rows of `length` ids: start, the pieces, end if `end`, then pads.

        A text that does not fit is cut; where `end`, its last id is still the end. `num_tokens` tells beforehand.
        Text i is encoded with seed + i.

        Raises:
          UserError: `texts` is one string; its letters would be taken for texts.
        """
        if isinstance(texts, str):
            raise UserError(f"captions come in a list, not as the one string '{texts[:40]}'")
        rows = [
            fit(self.pieces(text, dropout=dropout, seed=None if seed is None else (seed + i) % 2**31), length, end=end)
            for i, text in enumerate(texts)
        ]
        return np.stack(rows) if rows else np.zeros((0, length), np.int32)

    def row(self, caption: str, text: TextConfig, seed: int) -> tuple[Int32[np.ndarray, " T"], bool]:
        """One caption for a batch; see `RowTokenizer`."""
        pieces = self.pieces(caption, dropout=text.dropout, seed=seed, most=text.length)
        return fit(pieces, text.length, end=text.end), 1 + len(pieces) + text.end > text.length

    def num_tokens(self, text: str, *, end: bool = False) -> int:
        """Positions that a text takes, start and end included; where it exceeds `length`, `encode` cuts the text."""
        return 1 + len(self.pieces(text)) + end

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of one row of ids, up to the end or the first pad; start is left out."""
        kept: list[int] = []
        for token in map(int, ids):
            if token in (PAD, END):
                break
            if token != START:
                kept.append(token)
        return self._processor.decode(kept)

    def save(self, path: epath.PathLike) -> None:
        """Writes the model so that a reader sees either nothing or all of it."""
        write_whole(path, self.model)


def check_text(text: str) -> None:
    """Raises:
    UserError: the text cannot be written as UTF-8, as where a system or a file has brought other bytes in.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text[:40].encode("utf-8", "backslashreplace").decode()
        raise UserError(f"the text '{shown}' holds what is not UTF-8: write it in UTF-8") from None


def fit(pieces: list[int], length: int, *, end: bool) -> Int32[np.ndarray, " length"]:
    """One row of ids from the pieces of a text; see `Tokenizer.encode`."""
    ids = [START, *pieces[: length - 1 - end], *([END] if end else [])]
    row = np.full(length, PAD, np.int32)
    row[: len(ids)] = ids
    return row


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: epath.PathLike | None = None) -> Tokenizer:
    """Trains a tokenizer, the same one for the same texts.

    Args:
      texts: captions. They are held in memory; those of more than 65,536 bytes are left out, with a warning.
      vocab_size: entries, the four special ones and every character among them.
      out: where to save the model; None: nowhere.

    Raises:
      UserError: where there is no text, or where the texts cannot give exactly `vocab_size` entries; the message
        names a size that they can give.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(_NO_CAPTIONS)
    every = len(texts)
    texts = [text for text in texts if len(text.encode("utf-8", "surrogatepass")) <= _LONGEST]
    if not texts:
        raise UserError(f"all captions have more than {_LONGEST:,} bytes: write one caption a line")
    if len(texts) < every:
        _log.warning("%d captions of more than %d bytes are left out of the tokenizer", every - len(texts), _LONGEST)
    if vocab_size <= END:
        raise UserError(
            f"a vocabulary of {vocab_size} does not hold its {END + 1} special entries and the characters of the "
            "captions: set vocab_size to thousands, or hundreds for few captions"
        )
    model, size = _train(texts, vocab_size)
    if size != vocab_size:
        found = size
        # How many rare characters are left out depends on the size that is asked for, and so does what can be given.
        while (again := _train(texts, found)[1]) != found:
            found = again
        if size > vocab_size:
            raise UserError(
                f"a vocabulary of {vocab_size} does not hold the characters of these captions: set "
                f"vocab_size={found} or more"
            )
        raise UserError(
            f"these captions cannot give a vocabulary of {vocab_size}: merging every pair in them gives {size}; set "
            f"vocab_size={found} or lower, or bring more captions"
        )
    tokenizer = Tokenizer(model)
    if out is not None:
        tokenizer.save(out)
    return tokenizer


def _train(texts: list[str], vocab_size: int) -> tuple[bytes, int]:
    """A model and its number of entries, fewer than `vocab_size` where the texts give no more; where their characters
    alone need more, nothing and how many."""
    alphabet = {character for text in texts for character in text}
    # The alphabet takes entries of its own. A small one is kept whole; of a large one (many scripts, emoji) the rarest
    # 0.05% of all characters become unknown, which is SentencePiece's own default.
    coverage = 1.0 if len(alphabet) <= max(256, vocab_size // 8) else 0.9995
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=coverage,
            normalization_rule_name="nmt_nfkc_cf",
            max_sentence_length=_LONGEST,
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=START,
            eos_id=END,
            minloglevel=2,
        )
    except RuntimeError as error:
        smallest = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if "all_chars_count" in str(error):  # it found none: zero-width spaces, say, which it takes out first
            raise UserError(_NO_CAPTIONS) from error
        if smallest is None:
            raise
        return b"", int(smallest[1])
    return model.getvalue(), Tokenizer(model.getvalue()).vocab_size
