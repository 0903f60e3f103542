"""BPE dropout that repeats itself: a function of the text, the rate and a seed, in every process.

SentencePiece can sample too, but salts its seed with the process: the same seed gives other pieces in another process,
so that a resumed run would read other tokens, and so would every worker.
"""

import random
from collections.abc import Iterator, Mapping

import sentencepiece

_SPACE = "▁"  # what SentencePiece writes for a space; it stands in front of each word
_AT_ONCE = 128
"""Characters of a word among which pairs are merged at a time. The work grows with the square of them, and text without
spaces (a link, Chinese) is one word of any length."""


class Merges:
    """The merges of a SentencePiece BPE model."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
        self._processor = processor
        self._ids: Mapping[str, int] = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
        self._scores: Mapping[str, float] = {piece: processor.get_score(i) for piece, i in self._ids.items()}

    def encode(self, text: str, dropout: float, seed: int, most: int | None = None) -> list[int]:
        """Token ids of a text in which every merge is left out with probability `dropout` whenever it is possible
        (Provilkov et al. 2020, algorithm 1), and none is made over the 128th character of a word.

        Args:
          text: any string.
          dropout: with 0, the ids of words up to that length are SentencePiece's own.
          seed: of the draws.
          most: what comes after so many ids may be missing.
        """
        draw = random.Random(seed).random
        # Joined again, the pieces of the deterministic encoding are the normalised text.
        normalised = "".join(self._processor.encode(text, out_type=str))
        unknown = self._processor.unk_id()
        ids: list[int] = []
        for part in _parts(normalised):
            for piece in self._segment(part, dropout, draw):
                token = self._ids.get(piece, unknown)
                if token != unknown or not ids or ids[-1] != unknown:  # a run of unknown characters is one token
                    ids.append(token)
            if most is not None and len(ids) >= most:
                break
        return ids

    def _segment(self, word: str, dropout: float, draw) -> list[str]:
        scores, pieces = self._scores, list(word)
        while len(pieces) > 1:
            best, best_score = -1, -float("inf")
            for i in range(len(pieces) - 1):
                score = scores.get(pieces[i] + pieces[i + 1])
                if score is not None and draw() >= dropout and score > best_score:
                    best, best_score = i, score
            if best < 0:
                break
            pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
        return pieces


def _parts(normalised: str) -> Iterator[str]:
    """The words of a text, each with its space in front, long ones in parts."""
    for word in normalised.split(_SPACE):
        spaced = _SPACE + word
        if word:
            yield from (spaced[start : start + _AT_ONCE] for start in range(0, len(spaced), _AT_ONCE))
