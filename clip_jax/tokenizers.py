"""The tokenizers of published models: CLIP's byte-pair encoding and SigLIP's SentencePiece.

Both turn captions into int32 [n, context_length], the same ids as open_clip's tokenizers. A run may have a tokenizer of
its own instead (`clip_jax.run_tokenizer`).
"""

import abc
import functools
import gzip
import hashlib
import html
import itertools
import json
import string
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import ftfy
import numpy as np
import regex
import sentencepiece
import tokenizers
from etils import epath
from jaxtyping import Int32

from dalle_jax.data.config import TextConfig
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path

_SPECIAL = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))
"""Start and end as OpenAI's and transformers' vocabularies name them, and as open_clip's does."""

_NUM_MERGES = 49_152 - 256 - 2  # of OpenAI's table, whose file holds more

FILES = ("spiece.model", "tokenizer.json", "vocab.json")
"""What a checkpoint may bring, the first that is there."""

_CACHED_WORDS = 1 << 16


class CaptionTokenizer(abc.ABC):
    """Captions to rows of ids, `[start] pieces end`, filled up with pads."""

    end_id: int
    vocab_size: int
    _start: tuple[int, ...]
    _pad_id: int

    def __init__(self, context_length: int, truncate: bool):
        self.context_length, self.truncate = context_length, truncate

    @abc.abstractmethod
    def pieces(self, text: str) -> list[int]:
        """Ids of one caption of any length, without start, end or pads."""

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """What a folder of weights holds of this tokenizer, by name of file; `load_tokenizer` reads it."""

    def __call__(self, texts: Sequence[str], *, truncate: bool | None = None) -> Int32[np.ndarray, "n T"]:
        """Ids of captions, `context_length` positions each.

        Args:
          texts: captions.
          truncate: cut those that take more positions, their last id still the end; None: as the tokenizer was made.

        Raises:
          UserError: a caption takes more positions and is not to be cut; the message names it.
        """
        if isinstance(texts, str):
            raise UserError(f"captions come in a list, not as the one string '{texts[:40]}'")
        rows = np.full((len(texts), self.context_length), self._pad_id, np.int32)
        cut = self.truncate if truncate is None else truncate
        for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
            pieces = self.pieces(text)
            if len(pieces) > self._room and not cut:
                start = text[:60] + "..." * (len(text) > 60)
                positions = len(pieces) + self.context_length - self._room
                raise UserError(
                    f"caption {i} ('{start}') takes {positions} positions and the model reads {self.context_length}: "
                    "shorten it, or let captions be cut with truncate=True"
                )
            self._fill(row, pieces)
        return rows

    def row(self, caption: str, text: TextConfig, seed: int) -> tuple[Int32[np.ndarray, " T"], bool]:
        """One caption for a batch of training: its ids, and whether it was cut. See `dalle_jax.data.tokenizer`."""
        del seed  # nothing is left out of published merges
        assert text.length == self.context_length and text.end and not text.dropout, text
        pieces = self.pieces(caption)
        row = np.full(self.context_length, self._pad_id, np.int32)
        self._fill(row, pieces)
        return row, len(pieces) > self._room

    @functools.cached_property
    def fingerprint(self) -> str:
        """First 12 hexadecimal digits of a SHA-256 of its files: equal for equal tokenizers."""
        content = b"".join(name.encode() + data for name, data in sorted(self.files().items()))
        return hashlib.sha256(content).hexdigest()[:12]

    @property
    def _room(self) -> int:
        """The most pieces of a caption."""
        return self.context_length - len(self._start) - 1

    def _fill(self, row: np.ndarray, pieces: Sequence[int]) -> None:
        ids = (*self._start, *pieces[: self._room], self.end_id)
        row[: len(ids)] = ids


class ClipTokenizer(CaptionTokenizer):
    """CLIP's lower-cased byte-pair encoding (Radford et al. 2021, §2.4), padded with 0.

    Text is split into words by the release's expression, in Python, because the Unicode tables of the `tokenizers`
    library are older than those of `regex` and know fewer letters; the library merges the bytes of each word.
    """

    _pad_id = 0

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        context_length: int = 77,
        truncate: bool = False,
    ):
        """Args:
        vocab: ids of byte-level symbols, start and end among them under OpenAI's names or open_clip's.
        merges: pairs of symbols, the first to be merged first.
        context_length: positions of a row.
        truncate: whether longer captions are cut.

        Raises:
          UserError: start and end are missing, or a merge makes a symbol that is not in the vocabulary.
        """
        super().__init__(context_length, truncate)
        special = next((names for names in _SPECIAL if all(name in vocab for name in names)), None)
        if special is None:
            raise UserError(f"the vocabulary names neither {_SPECIAL[0]} nor {_SPECIAL[1]}: it is no CLIP tokenizer's")
        self._special = {name: vocab[name] for name in special}
        self._start, self.end_id = (self._special[special[0]],), self._special[special[1]]
        self.vocab_size, self._table = len(vocab), (vocab, merges)
        try:
            model = tokenizers.models.BPE(dict(vocab), list(merges), end_of_word_suffix="</w>")
        except Exception as error:  # the library raises nothing more exact
            raise UserError(f"vocabulary and merges do not fit together: {error}") from error
        self._model = tokenizers.Tokenizer(model)
        self._model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        literals = "|".join(map(regex.escape, special))
        words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self._words = regex.compile(f"{literals}|{words}", regex.IGNORECASE)
        # Captions repeat their words, and a look-up costs a tenth of the way into the library and back.
        self._word_ids = functools.lru_cache(_CACHED_WORDS)(self._encode_word)

    def __reduce__(self):  # the cache cannot be pickled, and worker processes get a copy
        make = functools.partial(ClipTokenizer, context_length=self.context_length, truncate=self.truncate)
        return make, self._table

    def pieces(self, text: str) -> list[int]:
        words = self._words.findall(clean(text).lower())
        return list(itertools.chain.from_iterable(map(self._word_ids, words)))

    def files(self) -> dict[str, bytes]:
        names = dict(zip(self._special, _SPECIAL[0], strict=True))
        vocab, merges = self._table
        start, end = _SPECIAL[0]
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": start,
            "eos_token": end,
            "unk_token": end,
            "pad_token": end,
            "model_max_length": self.context_length,
        }
        lines = ["#version: 0.2", *map(" ".join, merges)]
        return {
            "vocab.json": json.dumps({names.get(word, word): i for word, i in vocab.items()}).encode(),
            "merges.txt": "\n".join([*lines, ""]).encode(),
            "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
        }

    def _encode_word(self, word: str) -> list[int]:
        if word in self._special:
            return [self._special[word]]
        return self._model.encode(word, add_special_tokens=False).ids


class SiglipTokenizer(CaptionTokenizer):
    """SigLIP's text (Zhai et al. 2023): lower case without punctuation, SentencePiece, end and pads with id 1."""

    end_id = 1
    _start = ()
    _pad_id = 1

    def __init__(
        self,
        model: sentencepiece.SentencePieceProcessor | tokenizers.Tokenizer,
        *,
        context_length: int = 64,
        truncate: bool = False,
    ):
        """Args:
        model: the vocabulary, as SentencePiece or the `tokenizers` library hold it.
        context_length: positions of a row.
        truncate: whether longer captions are cut.
        """
        super().__init__(context_length, truncate)
        self._model = model
        sizes = model.vocab_size if isinstance(model, sentencepiece.SentencePieceProcessor) else model.get_vocab_size
        self.vocab_size = sizes()

    def pieces(self, text: str) -> list[int]:
        text = canonicalize(clean(text))
        if isinstance(self._model, sentencepiece.SentencePieceProcessor):
            return self._model.encode(text)
        return self._model.encode(text, add_special_tokens=False).ids

    def files(self) -> dict[str, bytes]:
        settings = {"tokenizer_class": "SiglipTokenizer", "model_max_length": self.context_length}
        described = {"tokenizer_config.json": json.dumps(settings, indent=2).encode()}
        if isinstance(self._model, sentencepiece.SentencePieceProcessor):
            return {"spiece.model": self._model.serialized_model_proto(), **described}
        return {"tokenizer.json": self._model.to_str().encode(), **described}


def load_tokenizer(
    path: epath.PathLike | None = None, *, context_length: int | None = None, truncate: bool = False
) -> CaptionTokenizer:
    """The tokenizer that a published model's files bring, or OpenAI's.

    Args:
      path: None: OpenAI's merges, which the package carries. A folder (or one of these files in it) with
        `spiece.model` (SigLIP), `tokenizer.json`, or `vocab.json` and `merges.txt`.
      context_length: positions of a row; None: 77 of CLIP, 64 of SigLIP.
      truncate: cut captions that are longer, instead of refusing them.

    Raises:
      UserError: there are no such files, or they hold another tokenizer.
    """
    options: dict[str, Any] = {"truncate": truncate}
    if context_length is not None:
        options["context_length"] = context_length
    if path is None:
        return ClipTokenizer(*_openai_table(), **options)
    path = as_path(path)
    folder = path if path.is_dir() else path.parent
    names = FILES if path.is_dir() else (path.name,)
    file = next((folder / name for name in names if name in FILES and (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{path} brings no tokenizer: it needs one of {', '.join(FILES)} (with merges.txt)")
    if file.suffix == ".model":
        return SiglipTokenizer(_sentencepiece(file), **options)
    if file.name == "tokenizer.json":
        return _from_tokenizer_json(file, options)
    lines = _text(folder / "merges.txt").split("\n")
    return ClipTokenizer(_json(file), _merges(lines["#version" in lines[0] :]), **options)


def clean(text: str) -> str:
    """Mends mojibake, resolves HTML entities twice, and makes all white space single spaces, as the release does."""
    # Of plain ASCII ftfy changes nothing but entities and control characters, and takes ten times as long to say so.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def canonicalize(text: str) -> str:
    """Lower case without ASCII punctuation, as SigLIP reads it; an underscore is a space."""
    text = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.cache
def _openai_table() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI's vocabulary and merges. The ids: bytes, bytes that end a word, merges in their order, start, end."""
    packed = resources.files("clip_jax").joinpath("published", "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")
    merges = _merges(lines[1 : 1 + _NUM_MERGES])
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), *_SPECIAL[1]]
    return {word: i for i, word in enumerate(words)}, merges


def _byte_symbols() -> list[str]:
    """The characters that stand for bytes: those that print for themselves, first, then 256 and on for the others."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(256 - len(printing))]


def _merges(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of symbols, one pair a line."""
    lines = [line for line in lines if line.strip()]
    pairs = [line.split() for line in lines]
    wrong = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None)
    if wrong is not None:
        raise UserError(f"a merges file holds two symbols a line, not '{wrong[:60]}': fetch it again")
    return [(first, second) for first, second in pairs]


def _from_tokenizer_json(file: epath.Path, options: Mapping[str, Any]) -> CaptionTokenizer:
    content = _json(file)
    model = content.get("model") if isinstance(content.get("model"), dict) else {}
    kind, added = model.get("type"), content.get("added_tokens") or []
    if kind == "Unigram":
        return SiglipTokenizer(_parsed(file), **options)
    if model.get("end_of_word_suffix") != "</w>":
        raise UserError(f"{file} is neither CLIP's byte-pair encoding nor SigLIP's unigrams (its model: {kind})")
    try:
        # Older files hold a merge as one string, newer ones as a pair.
        merges = _merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
        vocab = model["vocab"] | {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as a tokenizer: {error!r}") from error
    return ClipTokenizer(vocab, merges, **options)


def _parsed(file: epath.Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(_text(file))
    except Exception as error:  # the library raises nothing more exact
        raise UserError(f"{file} cannot be read as a tokenizer: {error}") from error


def _sentencepiece(file: epath.Path) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(file.read_bytes())
    except RuntimeError as error:
        raise UserError(f"{file} is not a SentencePiece model") from error
    return processor


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object: it is no tokenizer's file")
    return content


def _text(file: epath.Path) -> str:
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"{file} is missing: put it beside vocab.json") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error})") from error
