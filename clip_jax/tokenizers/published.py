"""The tokenizers of published models: CLIP's byte-pair encoding and SigLIP's SentencePiece.

Both turn captions into int32 [n, context_length], the same ids as open_clip's tokenizers. A run may have a tokenizer of
its own instead (`clip_jax.tokenizers.run_tokenizer`).
"""

import abc
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import regex
import sentencepiece
import tokenizers
from etils import epath
from jaxtyping import Int32

from clip_jax.tokenizers.added_tokens import (
    SETTINGS,
    AddedToken,
    AddedTokens,
    added_files,
    read_added_tokens,
    read_json,
    read_text,
    read_tokenizer_settings,
)
from clip_jax.tokenizers.bpe_table import OPEN_CLIP_SPECIAL, merge_pairs
from clip_jax.tokenizers.bpe_table import openai_table as _openai_table
from clip_jax.tokenizers.cleaning import Cleaning
from clip_jax.tokenizers.cleaning import canonicalize as canonicalize
from clip_jax.tokenizers.cleaning import clean as clean
from dalle_jax.data.captions import caption_list
from dalle_jax.data.config import TextConfig
from dalle_jax.errors import UserError
from dalle_jax.fetched import check_fetched
from dalle_jax.storage import as_path

_SPECIAL = (("<|startoftext|>", "<|endoftext|>"), OPEN_CLIP_SPECIAL)
"""Start and end as OpenAI's and transformers' vocabularies name them, and as open_clip's does."""

FILES = ("spiece.model", "tokenizer.json", "vocab.json")
"""What a checkpoint may bring, the first that is there."""

_CACHED_WORDS = 1 << 16

_ANCHOR = "<unk>"  # that text is tied to, so that no space comes before it


class CaptionTokenizer(abc.ABC):
    """Captions to rows of ids, `[start] pieces end`, filled up with pads."""

    end_id: int
    vocab_size: int
    cleaning: Cleaning | None = None
    """Of captions; None: the tokenizer has a way of its own."""
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
        texts = caption_list(texts)
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

    def _cleaning_file(self, usual: Cleaning) -> dict[str, str]:
        """What `tokenizer_config.json` says of the cleaning; nothing where it is the usual one."""
        return {} if self.cleaning is None or self.cleaning is usual else {"clean": self.cleaning.value}

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
        added: Sequence[AddedToken] = (),
        cleaning: Cleaning = Cleaning.LOWER,
    ):
        """Args:
        vocab: ids of byte-level symbols, start and end among them under OpenAI's names or open_clip's.
        merges: pairs of symbols, the first to be merged first.
        context_length: positions of a row.
        truncate: whether longer captions are cut.
        added: tokens that are not split.
        cleaning: of captions.

        Raises:
          UserError: start and end are missing, or a merge makes a symbol that is not in the vocabulary.
        """
        super().__init__(context_length, truncate)
        special = next((names for names in _SPECIAL if all(name in vocab for name in names)), None)
        if special is None:
            raise UserError(
                f"the vocabulary names neither {_SPECIAL[0]} nor {_SPECIAL[1]}: it is not a CLIP tokenizer's"
            )
        self._special = {name: vocab[name] for name in special}
        self._start, self.end_id = (self._special[special[0]],), self._special[special[1]]
        self._table, self.cleaning, self._added = (vocab, merges), cleaning, AddedTokens(added, cleaning)
        self.vocab_size = 1 + max((*vocab.values(), *(token.id for token in added)))
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
        options: dict[str, Any] = {"added": self._added.tokens, "cleaning": self.cleaning}
        make = functools.partial(ClipTokenizer, context_length=self.context_length, truncate=self.truncate, **options)
        return make, self._table

    def pieces(self, text: str) -> list[int]:
        return self._added.encode(text, self._encode)

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
            **added_files(self._added.tokens),
            **self._cleaning_file(Cleaning.LOWER),
        }
        lines = ["#version: 0.2", *map(" ".join, merges)]
        return {
            "vocab.json": json.dumps({names.get(word, word): i for word, i in vocab.items()}).encode(),
            "merges.txt": "\n".join([*lines, ""]).encode(),
            SETTINGS: json.dumps(settings, indent=2).encode(),
        }

    def _encode(self, text: str) -> list[int]:
        return list(itertools.chain.from_iterable(map(self._word_ids, self._words.findall(text))))

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
        added: Sequence[AddedToken] = (),
        cleaning: Cleaning = Cleaning.CANONICALIZE,
    ):
        """Args:
        model: the vocabulary, as SentencePiece or the `tokenizers` library hold it.
        context_length: positions of a row.
        truncate: whether longer captions are cut.
        added: tokens that are not split.
        cleaning: of captions.
        """
        super().__init__(context_length, truncate)
        self._model, self.cleaning = model, cleaning
        sizes = model.vocab_size if isinstance(model, sentencepiece.SentencePieceProcessor) else model.get_vocab_size
        # Ids of the vocabulary itself are names that captions do not use: of its end, of what it does not know.
        own = tuple(token for token in added if token.id >= _own_size(model))
        # Without punctuation most would not be found.
        self._added = AddedTokens(own, cleaning, as_they_are=True)
        self.vocab_size = max((sizes(), *(token.id + 1 for token in own)))

    def pieces(self, text: str) -> list[int]:
        return self._added.encode(text, self._encode, self._encode_later)

    def _encode_later(self, text: str) -> list[int]:
        """After an added token transformers' slow tokenizer takes the first word for a part of one."""
        if isinstance(self._model, sentencepiece.SentencePieceProcessor):
            return self._model.encode(_ANCHOR + text)[len(self._model.encode(_ANCHOR)) :]
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        if isinstance(self._model, sentencepiece.SentencePieceProcessor):
            return self._model.encode(text)
        return self._model.encode(text, add_special_tokens=False).ids

    def files(self) -> dict[str, bytes]:
        settings = {
            "tokenizer_class": "SiglipTokenizer",
            "model_max_length": self.context_length,
            **added_files(self._added.tokens),
            **self._cleaning_file(Cleaning.CANONICALIZE),
        }
        described = {SETTINGS: json.dumps(settings, indent=2).encode()}
        if isinstance(self._model, sentencepiece.SentencePieceProcessor):
            return {"spiece.model": self._model.serialized_model_proto(), **described}
        return {"tokenizer.json": self._model.to_str().encode(), **described}


def load_tokenizer(
    path: epath.PathLike | None = None,
    *,
    context_length: int | None = None,
    truncate: bool = False,
    cleaning: Cleaning | None = None,
) -> CaptionTokenizer:
    """The tokenizer that a published model's files bring, or OpenAI's.

    Args:
      path: None: OpenAI's merges, which the package carries. A folder (or one of these files in it) with
        `spiece.model` (SigLIP), `tokenizer.json`, or `vocab.json` and `merges.txt`.
      context_length: positions of a row; None: 77 of CLIP, 64 of SigLIP.
      truncate: cut captions that are longer, instead of refusing them.
      cleaning: of captions; None: the tokenizer's own.

    Raises:
      UserError: there are no such files, or they hold another tokenizer.
    """
    options: dict[str, Any] = {"truncate": truncate}
    if context_length is not None:
        options["context_length"] = context_length
    if cleaning is not None:
        options["cleaning"] = cleaning
    if path is None:
        return ClipTokenizer(*_openai_table(), **options)
    path = as_path(path)
    folder = path if path.is_dir() else path.parent
    names = FILES if path.is_dir() else (path.name,)
    file = next((folder / name for name in names if name in FILES and (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{path} brings no tokenizer: it needs one of {', '.join(FILES)} (with merges.txt)")
    if cleaning is None and (named := read_tokenizer_settings(folder).get("clean")):
        options["cleaning"] = _cleaning(named, folder)
    if file.suffix == ".model":
        return SiglipTokenizer(_sentencepiece(file), added=read_added_tokens(folder, (), {}), **options)
    if file.name == "tokenizer.json":
        return _from_tokenizer_json(file, options)
    vocab, lines = read_json(file), read_text(folder / "merges.txt").split("\n")
    added = read_added_tokens(folder, (), _special_in(vocab))
    return ClipTokenizer(vocab, merge_pairs(lines["#version" in lines[0] :]), added=added, **options)


def _cleaning(name: Any, folder: epath.Path) -> Cleaning:
    known = {cleaning.value: cleaning for cleaning in Cleaning}
    if name not in known:
        raise UserError(f"{folder / SETTINGS}: clean is '{name}', and those read here are {', '.join(known)}")
    return known[name]


def _special_in(vocab: Mapping[str, Any]) -> dict[str, Any]:
    """Start and end, which are no added tokens."""
    return {name: vocab[name] for names in _SPECIAL for name in names if name in vocab}


def _own_size(model: sentencepiece.SentencePieceProcessor | tokenizers.Tokenizer) -> int:
    """Of the vocabulary without added tokens."""
    if isinstance(model, sentencepiece.SentencePieceProcessor):
        return model.vocab_size()
    return model.get_vocab_size(with_added_tokens=False)


def _from_tokenizer_json(file: epath.Path, options: Mapping[str, Any]) -> CaptionTokenizer:
    content = read_json(file)
    model = content.get("model") if isinstance(content.get("model"), dict) else {}
    kind, listed = model.get("type"), content.get("added_tokens") or []
    if kind == "Unigram":
        parsed = _parsed(file)
        return SiglipTokenizer(parsed, added=read_added_tokens(file.parent, listed, {}), **options)
    if model.get("end_of_word_suffix") != "</w>":
        raise UserError(f"{file} is neither CLIP's byte-pair encoding nor SigLIP's unigrams (its model: {kind})")
    try:
        # Older files hold a merge as one string, newer ones as a pair.
        merges = merge_pairs([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
        vocab = model["vocab"] | _special_in({token["content"]: token["id"] for token in listed})
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read as a tokenizer: {error!r}") from error
    added = read_added_tokens(file.parent, listed, _special_in(vocab))
    return ClipTokenizer(vocab, merges, added=added, **options)


def _parsed(file: epath.Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(read_text(file))
    except Exception as error:  # the library raises nothing more exact
        raise UserError(f"{file} cannot be read as a tokenizer: {error}") from error


def _sentencepiece(file: epath.Path) -> sentencepiece.SentencePieceProcessor:
    processor, content = sentencepiece.SentencePieceProcessor(), file.read_bytes()
    check_fetched(content, file)
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(f"{file} is not a SentencePiece model") from error
    return processor
