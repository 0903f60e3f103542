"""The tokenizer: its ids, its dropout, what it says of corpora that are too small."""

import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dalle_jax.data.config import TextConfig
from dalle_jax.data.tokenizer import END, PAD, START, UNKNOWN, Tokenizer, train_tokenizer
from dalle_jax.errors import UserError

WORDS = ["a", "photo", "of", "the", "red", "small", "dog", "cat", "running", "over", "green", "hills", "seven"]
_RNG = random.Random(0)
TEXTS = [" ".join(_RNG.choices(WORDS, k=_RNG.randint(3, 12))) for _ in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 90)


def test_rows_of_ids(tokenizer):
    rows = tokenizer.encode(["A RED dog", "the cat"], 12)
    assert rows.dtype == np.int32 and rows.shape == (2, 12)
    assert (rows[:, 0] == START).all() and (rows[:, -1] == PAD).all() and END not in rows
    assert np.array_equal(rows, tokenizer.encode(["a red dog", "The  Cat "], 12))
    assert [tokenizer.decode(row) for row in rows] == ["a red dog", "the cat"]
    assert tokenizer.encode([], 5).shape == (0, 5)
    assert tokenizer.encode([""], 5, end=True).tolist() == [[START, END, PAD, PAD, PAD]]


def test_long_texts_are_cut_and_keep_their_end(tokenizer):
    text = " ".join(WORDS)
    assert tokenizer.num_tokens(text) > 8 and tokenizer.num_tokens(text, end=True) == tokenizer.num_tokens(text) + 1
    whole, cut = (tokenizer.encode([text], length)[0] for length in (99, 8))
    closed = tokenizer.encode([text], 8, end=True)[0]
    assert np.array_equal(cut, whole[:8])
    assert np.array_equal(closed[:7], whole[:7]) and closed[7] == END
    exact = tokenizer.encode([text], tokenizer.num_tokens(text, end=True), end=True)[0]
    assert PAD not in exact and exact[-1] == END


def test_unknown_characters(tokenizer):
    assert tokenizer.pieces("☃☃").count(UNKNOWN) == 1
    assert tokenizer.pieces("dog") == tokenizer.pieces("ＤＯＧ")  # full-width letters: NFKC


def test_dropout_of_nothing_is_sentencepiece_itself(tokenizer):
    for text in [*TEXTS, " Ünïcode  ÑÑ 漢字 ☃☃☃ x", "", "   ", "a" * 300, "½ ﬁ ß", "a▁b ▁ x", "t\ta\n"]:
        assert tokenizer._merges.encode(text, 0.0, seed=0) == tokenizer.pieces(text)


def test_captions_that_spell_control_symbols():
    """Remnants of HTML are text: no piece joins a bracket and a letter, so none of them becomes a control symbol."""
    captions = ["<s <span </s </span a red <s> dot </s>", "<pad <unk> <unk> <s s> s>"] * 20
    tokenizer = train_tokenizer(captions, 41)
    for text in [*captions[:2], "x<s>y", "</s>", "<pad>"]:
        ids = tokenizer.pieces(text)
        assert tokenizer._merges.encode(text, 0.0, seed=0) == ids
        drawn = [tokenizer.pieces(text, dropout=0.1, seed=seed) for seed in range(30)]
        assert not {0, 2, 3} & {token for tokens in (ids, *drawn) for token in tokens}


def test_dropout_changes_pieces_and_not_the_text(tokenizer):
    variants = {tuple(tokenizer.pieces(TEXTS[0], dropout=0.3, seed=seed)) for seed in range(20)}
    assert len(variants) > 10
    assert {tokenizer.decode(variant) for variant in variants} == {TEXTS[0]}
    lengths = [
        np.mean([len(tokenizer.pieces(text, dropout=rate, seed=i)) for i, text in enumerate(TEXTS)])
        for rate in (0.0, 0.1, 0.5, 0.999)
    ]
    assert lengths == sorted(lengths)
    # With every merge left out, what remains is single characters (the space of each word among them).
    assert lengths[-1] == pytest.approx(np.mean([len(text) + 1 for text in TEXTS]), rel=0.01)
    with pytest.raises(ValueError, match="seed"):
        tokenizer.pieces("a", dropout=0.1)


def test_dropout_rate_is_the_rate_of_each_merge():
    # Two letters, one merge: it must be left out in a tenth of the draws.
    tokenizer = train_tokenizer(["ab"] * 10, 4 + 3 + 2)
    whole = tokenizer.pieces("ab")
    assert len(whole) == 1
    merged = np.mean([len(tokenizer.pieces("ab", dropout=0.1, seed=seed)) == 1 for seed in range(4000)])
    # ab and then the space before it: either left out stops the second merge.
    assert merged == pytest.approx(0.9 * 0.9, abs=0.02)


def test_dropout_of_a_word_without_an_end(tokenizer, monkeypatch):
    """A link, or a text in a script without spaces: in parts, since the work grows with their square, and only as far
    as is read."""
    merges, segmented = tokenizer._merges, []
    segment = merges._segment
    monkeypatch.setattr(merges, "_segment", lambda part, *rest: segmented.append(part) or segment(part, *rest))
    ids = tokenizer.pieces("redcircle" * 20_000, dropout=0.1, seed=3, most=256)
    assert max(map(len, segmented)) == 128 and 256 <= len(ids) < 256 + 128 and sum(map(len, segmented)) < 2_000
    row, cut = tokenizer.row("redcircle" * 20_000, TextConfig(length=256, dropout=0.1), 3)
    assert cut and row[1:].tolist() == ids[:255]
    short = "redcircle" * 40
    assert tokenizer.decode(tokenizer.pieces(short, dropout=0.1, seed=3)) == short


def test_dropout_is_a_function_of_text_and_seed_in_threads(tokenizer):
    jobs = list(range(300))
    reference = [tokenizer.pieces(TEXTS[i], dropout=0.2, seed=i) for i in jobs]
    shuffled = random.Random(1).sample(jobs * 3, 900)
    other = Tokenizer(tokenizer.model)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda i: (tokenizer, other)[i % 2].pieces(TEXTS[i], dropout=0.2, seed=i), shuffled)
        assert [ids == reference[i] for i, ids in zip(shuffled, found, strict=True)] == [True] * 900
    batch = tokenizer.encode(TEXTS[5:8], 40, dropout=0.2, seed=5)
    assert [row[1 : 1 + len(ids)].tolist() for row, ids in zip(batch, reference[5:8], strict=True)] == reference[5:8]


def test_dropout_is_the_same_in_another_process(tokenizer, tmp_path):
    # SentencePiece's own sampler fails this: it salts its seed with the process.
    tokenizer.save(tmp_path / "t.model")
    code = (
        "from dalle_jax.data.tokenizer import Tokenizer\n"
        f"t = Tokenizer({str(tmp_path / 't.model')!r})\n"
        f"print([t.pieces({TEXTS[0]!r}, dropout=0.3, seed=s) for s in range(20)])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert eval(result.stdout) == [tokenizer.pieces(TEXTS[0], dropout=0.3, seed=seed) for seed in range(20)]


def test_files_and_copies(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep" / "tokenizer.model")
    loaded = Tokenizer(tmp_path / "deep" / "tokenizer.model")
    assert loaded.fingerprint == tokenizer.fingerprint and len(loaded.fingerprint) == 12
    assert loaded.vocab_size == 90
    assert pickle.loads(pickle.dumps(tokenizer)).pieces("red dog") == tokenizer.pieces("red dog")
    assert train_tokenizer(TEXTS, 90, tmp_path / "again.model").fingerprint == tokenizer.fingerprint
    assert Tokenizer(tmp_path / "again.model").fingerprint == tokenizer.fingerprint


def test_a_vocabulary_that_the_corpus_cannot_give():
    with pytest.raises(UserError, match=r"cannot give a vocabulary of 5000: .* gives \d+; set vocab_size=") as error:
        train_tokenizer(TEXTS, 5000)
    feasible = int(str(error.value).split("vocab_size=")[1].split()[0])
    assert train_tokenizer(TEXTS, feasible).vocab_size == feasible
    with pytest.raises(UserError, match=f"set vocab_size={feasible} or lower"):
        train_tokenizer(TEXTS, feasible + 1)


def test_a_vocabulary_smaller_than_the_alphabet():
    with pytest.raises(UserError, match=r"a vocabulary of 12 does not hold .* set vocab_size=\d+") as error:
        train_tokenizer(TEXTS, 12)
    smallest = int(str(error.value).split("vocab_size=")[1].split()[0])
    assert train_tokenizer(TEXTS, smallest).vocab_size == smallest
    with pytest.raises(UserError):
        train_tokenizer(TEXTS, smallest - 1)


@pytest.mark.parametrize("asked", [8, 300, 600, 2000, 16384])
def test_a_size_that_is_named_can_be_had(asked):
    """Of 900 characters, most of them rare: whether those are left out depends on the size that is asked for."""
    texts = [f"{chr(0x4E00 + i)} dog cat bird" for i in range(900)] + ["dog cat bird"] * 3000
    with pytest.raises(UserError, match="set vocab_size=") as error:
        train_tokenizer(texts, asked)
    named = int(str(error.value).split("vocab_size=")[1].split()[0])
    assert train_tokenizer(texts, named).vocab_size == named


@pytest.mark.parametrize("vocab_size", [3, 0, -5])
def test_a_vocabulary_without_room_for_anything(vocab_size):
    with pytest.raises(UserError, match=rf"a vocabulary of {vocab_size} does not hold its 4 special entries"):
        train_tokenizer(["a dog"], vocab_size)


def test_captions_of_which_nothing_is_left():
    with pytest.raises(UserError, match="there are no captions to train a tokenizer on"):
        train_tokenizer(["\u200b"], 100)  # a zero-width space, which no white space is


def test_no_captions_and_no_model(tmp_path):
    with pytest.raises(UserError, match="no captions to train a tokenizer on"):
        train_tokenizer(["", "  "], 100)
    with pytest.raises(UserError, match=r"there is no tokenizer at .*nowhere\.model"):
        Tokenizer(tmp_path / "nowhere.model")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Tokenizer(b"no model")


def test_another_makers_model(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(tmp_path / "m"), vocab_size=90, model_type="bpe", minloglevel=2
    )
    with pytest.raises(UserError, match="other special ids"):
        Tokenizer(tmp_path / "m.model")


def test_rare_characters_of_a_large_alphabet_become_unknown():
    # Kept whole, these 400 would ask for a vocabulary of more than 400.
    texts = ["the red dog runs over the green hills"] * 3000 + [chr(0x4E00 + i) for i in range(400)]
    tokenizer = train_tokenizer(texts, 380)
    assert tokenizer.vocab_size == 380
    assert any(UNKNOWN in tokenizer.pieces(text) for text in texts[3000:])
    assert UNKNOWN not in tokenizer.pieces(texts[0])


def test_real_captions(emoji_glob, tmp_path):
    from dalle_jax.data import paths
    from dalle_jax.data.captions import all_captions
    from dalle_jax.data.readers.webdataset import WebDataset

    texts = list(all_captions(WebDataset(paths.expand(emoji_glob, ".tar"))))
    tokenizer = train_tokenizer(texts, 1000)
    assert all(tokenizer.decode(tokenizer.encode([text], 64)[0]) for text in texts)
    assert all(tokenizer._merges.encode(text, 0.0, seed=0) == tokenizer.pieces(text) for text in texts)


def test_what_is_not_utf8_is_refused(tokenizer):
    """As where an argument or a JSON file brings it in; SentencePiece itself ends in a fault."""
    for encode in (tokenizer.pieces, lambda text: tokenizer.pieces(text, dropout=0.5, seed=0)):
        with pytest.raises(UserError, match=r"the text 'caf\\udce9' holds what is not UTF-8"):
            encode("caf\udce9")
