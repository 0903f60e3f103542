"""BPE dropout that repeats itself: a function of the text, the rate and a seed, in every process.

SentencePiece can sample too, but salts its seed with the process: the same seed gives other pieces in another process,
so that a resumed run would read other tokens, and so would every worker.
"""

import random
from collections.abc import Mapping

import sentencepiece

_SPACE = "▁"  # what SentencePiece writes for a space; it stands in front of each word


class Merges:
    """The merges of a SentencePiece BPE model."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor):
        self._processor = processor
        self._ids: Mapping[str, int] = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
        self._scores: Mapping[str, float] = {piece: processor.get_score(i) for piece, i in self._ids.items()}

    def encode(self, text: str, dropout: float, seed: int) -> list[int]:
        """Token ids of a text in which every merge is left out with probability `dropout` whenever it is possible
        (Provilkov et al. 2020, algorithm 1). With 0 they are SentencePiece's own."""
        draw = random.Random(seed).random
        # Joined again, the pieces of the deterministic encoding are the normalised text.
        normalised = "".join(self._processor.encode(text, out_type=str))
        unknown = self._processor.unk_id()
        ids: list[int] = []
        for word in normalised.split(_SPACE):
            for piece in self._segment(_SPACE + word, dropout, draw) if word else ():
                token = self._ids.get(piece, unknown)
                if token != unknown or not ids or ids[-1] != unknown:  # a run of unknown characters is one token
                    ids.append(token)
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
