"""Tokens that people add to a published tokenizer (a word of textual inversion, of a trade): one id each, not split.

They are matched as transformers' tokenizers do it: special ones in the caption as it is, others after it is cleaned.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import regex
from etils import epath

from dalle_jax.errors import UserError
from dalle_jax.fetched import check_fetched

SETTINGS = "tokenizer_config.json"
"""Beside every tokenizer of transformers; `added_tokens_decoder` in it has added tokens by their ids."""

LEGACY = "added_tokens.json"
"""Ids of added tokens alone, beside `vocab.json`."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """One token and how it is found."""

    content: str
    id: int
    normalized: bool = True
    """Whether it is matched in the caption after it is cleaned, and is cleaned itself."""
    single_word: bool = False
    """Whether it counts between characters that are not letters, digits or underscores alone."""
    special: bool = False

    def settings(self) -> dict[str, Any]:
        """Its entry in `added_tokens_decoder`."""
        about = dataclasses.asdict(self)
        del about["id"]
        return about | {"lstrip": False, "rstrip": False}


Encode = Callable[[str], list[int]]


class AddedTokens:
    """Splits captions at added tokens."""

    def __init__(self, tokens: Iterable[AddedToken], clean: Callable[[str], str], *, as_they_are: bool = False):
        """Args:
        tokens: any number of them; of two with one content, the first counts.
        clean: what is done to captions.
        as_they_are: match all of them before that.
        """
        self.tokens = tuple(tokens)
        self._clean = clean
        raw = [token for token in self.tokens if as_they_are or not token.normalized]
        self._before = _Matcher((token.content, token) for token in raw)
        self._after = _Matcher((clean(token.content), token) for token in self.tokens if token not in raw)

    def encode(self, text: str, encode: Encode, encode_later: Encode | None = None) -> list[int]:
        """Ids of a caption.

        Args:
          text: the caption, not cleaned yet.
          encode: ids of cleaned text.
          encode_later: of text that stands after an added token; None: as any other.
        """
        if not self.tokens:
            return encode(self._clean(text))
        ids: list[int] = []
        for part in self.split(text):
            if isinstance(part, AddedToken):
                ids.append(part.id)
                encode = encode_later or encode
            elif part:
                ids += encode(part)
        return ids

    def split(self, text: str) -> Iterator[str | AddedToken]:
        """The tokens, and the cleaned text around each; it may be empty."""
        for part in self._before.split(text):
            if isinstance(part, AddedToken):
                yield part
            else:
                yield from self._after.split(self._clean(part))


class _Matcher:
    """Finds literal strings, of several at one place the longest."""

    def __init__(self, tokens: Iterable[tuple[str, AddedToken]]):
        self._tokens: dict[str, AddedToken] = {}
        for content, token in tokens:
            if content:
                self._tokens.setdefault(content, token)
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = regex.compile("|".join(map(self._literal, longest_first)))

    def _literal(self, content: str) -> str:
        literal = regex.escape(content)
        return rf"(?<!\w){literal}(?!\w)" if self._tokens[content].single_word else literal

    def split(self, text: str) -> Iterator[str | AddedToken]:
        start = 0
        for match in self._pattern.finditer(text) if self._tokens else ():
            yield text[start : match.start()]
            yield self._tokens[match.group()]
            start = match.end()
        yield text[start:]


def read_added_tokens(folder: epath.Path, listed: Sequence[Any], base: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """The added tokens of a tokenizer.

    Args:
      folder: with `tokenizer_config.json` or `added_tokens.json`, or neither.
      listed: `added_tokens` of a `tokenizer.json`, which come first.
      base: tokens that the tokenizer has of itself, start and end, which are left out.

    Raises:
      UserError: a file is damaged.
    """
    settings = read_tokenizer_settings(folder)
    named = [*listed]
    decoder = settings.get("added_tokens_decoder") or {}
    legacy = read_json(folder / LEGACY) if (folder / LEGACY).is_file() else {}
    lists = (settings.get(name) or () for name in ("additional_special_tokens", "extra_special_tokens"))
    try:
        special = {str(name) for names in lists for name in names}
        named += [entry | {"id": int(id_)} for id_, entry in decoder.items()]
        named += [
            {"content": content, "id": id_, "special": content in special, "normalized": content not in special}
            for content, id_ in legacy.items()
        ]
        found = {token.content: token for token in reversed([_token(entry) for entry in named])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} cannot be read as a tokenizer: its added tokens are damaged ({error!r})") from error
    return tuple(sorted((token for name, token in found.items() if name not in base), key=lambda token: token.id))


def read_tokenizer_settings(folder: epath.Path) -> dict[str, Any]:
    """`tokenizer_config.json`; empty where there is none."""
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def added_files(tokens: Sequence[AddedToken]) -> dict[str, Any]:
    """What is added to `tokenizer_config.json`; nothing where there are no tokens."""
    return {"added_tokens_decoder": {str(token.id): token.settings() for token in tokens}} if tokens else {}


def read_json(file: epath.Path) -> dict[str, Any]:
    """The JSON object in a tokenizer's file.

    Raises:
      UserError: it is none.
    """
    try:
        content = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold a JSON object: it is no tokenizer's file")
    return content


def read_text(file: epath.Path) -> str:
    """The text in a tokenizer's file.

    Raises:
      UserError: it is missing, or not UTF-8.
    """
    try:
        content = file.read_bytes()
        check_fetched(content, file)
        return content.decode()
    except FileNotFoundError:
        raise UserError(f"{file} is missing: put it beside vocab.json") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error})") from error


def _token(entry: Mapping[str, Any]) -> AddedToken:
    content, id_ = entry["content"], entry["id"]
    if not isinstance(content, str) or isinstance(id_, bool) or not isinstance(id_, int) or id_ < 0 or not content:
        raise ValueError(f"{content!r} with the id {id_!r}")
    special = bool(entry.get("special", False))
    normalized = bool(entry.get("normalized", not special))
    return AddedToken(content, id_, normalized, bool(entry.get("single_word", False)), special)
