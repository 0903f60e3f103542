"""OpenAI's table of merges, which the package carries, and tables of other files."""

import functools
import gzip
from collections.abc import Sequence
from importlib import resources

from dalle_jax.errors import UserError

OPEN_CLIP_SPECIAL = ("<start_of_text>", "<end_of_text>")
"""Start and end as open_clip names them."""

_NUM_MERGES = 49_152 - 256 - 2  # of OpenAI's table, whose file holds more


@functools.cache
def openai_table() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI's vocabulary and merges. The ids: bytes, bytes that end a word, merges in their order, start, end."""
    packed = resources.files("clip_jax").joinpath("published", "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")
    merges = merge_pairs(lines[1 : 1 + _NUM_MERGES])
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges), *OPEN_CLIP_SPECIAL]
    return {word: i for i, word in enumerate(words)}, merges


def _byte_symbols() -> list[str]:
    """The characters that stand for bytes: those that print for themselves, first, then 256 and on for the others."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(256 - len(printing))]


def merge_pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of symbols, one pair a line."""
    lines = [line for line in lines if line.strip()]
    pairs = [line.split() for line in lines]
    wrong = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None)
    if wrong is not None:
        raise UserError(f"a merges file holds two symbols a line, not '{wrong[:60]}': fetch it again")
    return [(first, second) for first, second in pairs]
