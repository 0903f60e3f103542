"""Tokens that were added to a tokenizer, from every file that may name them, and what is done to captions before."""

import json
import pickle

import pytest
import sentencepiece

from clip_jax.tokenizers.added_tokens import AddedToken
from clip_jax.tokenizers.cleaning import Cleaning
from clip_jax.tokenizers.published import ClipTokenizer, SiglipTokenizer, load_tokenizer
from dalle_jax.errors import UserError

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ["a", "b", "<", ">", "a</w>", "b</w>", "<</w>", "></w>", "ab</w>", "A</w>", START, END]
VOCAB = {word: i for i, word in enumerate(WORDS)}
A, B, LESS, MORE, AB, CAPITAL = (VOCAB[word] for word in ("a</w>", "b</w>", "<</w>", "></w>", "ab</w>", "A</w>"))
MERGES = [("a", "b</w>")]
ENTRIES = [
    {"id": 12, "content": "<aa>", "normalized": True, "single_word": False, "special": False},
    {"id": 13, "content": "AA", "normalized": True, "single_word": True, "special": False},
    {"id": 14, "content": "<S>", "normalized": False, "single_word": False, "special": True},
]


def write(folder, kind):
    """The files of a folder as transformers has written them over the years."""
    settings = {"tokenizer_class": "CLIPTokenizer"}
    if kind == "tokenizer.json":
        added = [{"id": VOCAB[name], "content": name, "special": True} for name in (START, END)] + ENTRIES
        model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": VOCAB, "merges": MERGES}
        (folder / kind).write_text(json.dumps({"model": model, "added_tokens": added}))
        return
    (folder / "vocab.json").write_text(json.dumps(VOCAB))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    if kind == "added_tokens.json":
        (folder / kind).write_text(json.dumps({entry["content"]: entry["id"] for entry in ENTRIES}))
        settings["additional_special_tokens"] = ["<S>"]
    else:
        named = [{"id": VOCAB[name], "content": name, "special": True} for name in (START, END)] + ENTRIES
        settings["added_tokens_decoder"] = {str(entry["id"]): entry for entry in named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_added_tokens_are_one_id_whichever_file_names_them(tmp_path, kind):
    write(tmp_path, kind)
    tokenizer = load_tokenizer(tmp_path, context_length=8)
    assert tokenizer.vocab_size == 15 and tokenizer.end_id == 11
    assert tokenizer.pieces("a <aa> b") == [A, 12, B] and tokenizer.pieces("b<AA>b") == [B, 12, B]
    assert tokenizer.pieces("a Aa.")[:2] == [A, 13] and tokenizer.pieces("<S> <s")[:2] == [14, LESS]
    assert tokenizer(["<aa>"]).tolist() == [[10, 12, 11, 0, 0, 0, 0, 0]]
    if kind != "added_tokens.json":  # which has ids alone
        assert 13 not in tokenizer.pieces("aab") and tokenizer.pieces("ab aa") == [AB, 13]
    (tmp_path / "again").mkdir()
    for name, content in tokenizer.files().items():
        (tmp_path / "again" / name).write_bytes(content)
    for copy in (load_tokenizer(tmp_path / "again", context_length=8), pickle.loads(pickle.dumps(tokenizer))):
        for text in ("b<AA>b", "a Aa.", "aab", "<S> <s", "ab"):
            assert copy.pieces(text) == tokenizer.pieces(text), text
        assert copy.fingerprint == tokenizer.fingerprint


def test_of_two_that_begin_alike_the_longer_is_found():
    tokens = [AddedToken("a", 12), AddedToken("a<", 13)]
    assert ClipTokenizer(VOCAB, MERGES, added=tokens).pieces("a<a") == [13, 12]


def test_a_tokenizer_without_added_tokens_has_the_fingerprint_that_it_had():
    """Runs compare it when they go on."""
    assert sorted(json.loads(ClipTokenizer(VOCAB, MERGES).files()["tokenizer_config.json"])) == [
        "bos_token", "eos_token", "model_max_length", "pad_token", "tokenizer_class", "unk_token",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<aa>": "twelve"}),
        ("added_tokens.json", {"<aa>": -1}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<aa>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"12": "<aa>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"12": {}}}),
    ],
)
def test_damaged_tokens_are_one_line(tmp_path, name, content):
    write(tmp_path, "tokenizer_config.json")
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match="its added tokens are damaged"):
        load_tokenizer(tmp_path)


def test_captions_are_cleaned_as_the_folder_says(tmp_path):
    write(tmp_path, "tokenizer_config.json")
    for cleaning, expected in (
        (Cleaning.LOWER, [A, LESS, B]),
        (Cleaning.CANONICALIZE, [A, B]),
        (Cleaning.WHITESPACE, [CAPITAL, LESS, B]),
    ):
        tokenizer = load_tokenizer(tmp_path, cleaning=cleaning)
        assert tokenizer.pieces("A < b") == expected
        for name, content in tokenizer.files().items():
            (tmp_path / name).write_bytes(content)
        assert load_tokenizer(tmp_path).pieces("A < b") == expected
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"clean": "title"}))
    with pytest.raises(UserError, match="tokenizer_config.json: clean is 'title', and those read here are lower"):
        load_tokenizer(tmp_path)


def test_tokens_added_to_siglips_vocabulary(tmp_path):
    """They are found before punctuation goes; what follows one is read as a part of a word, as transformers does."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle on the blue square"] * 50),
        model_prefix=str(tmp_path / "spiece"),
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    plain = load_tokenizer(tmp_path)
    size = plain.vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 1, "<cat-toy>": size}))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, SiglipTokenizer) and tokenizer.vocab_size == size + 1
    assert tokenizer.pieces("A red <cat-toy>.") == [*plain.pieces("a red"), size]
    assert tokenizer.pieces("<cat-toy> </s>")[0] == size and tokenizer.pieces("</s>") == plain.pieces("s")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    later = tokenizer.pieces("<cat-toy> red")[1:]
    assert model.decode(later) == "red" and not model.id_to_piece(later[0]).startswith("▁")
    assert load_tokenizer(tmp_path, cleaning=Cleaning.WHITESPACE).pieces("RED.") != plain.pieces("RED.")
