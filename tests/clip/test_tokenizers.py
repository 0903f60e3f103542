"""Published tokenizers: the same ids as the peers' on thousands of strings, from every kind of file, and mistakes."""

import importlib.util
import json
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from clip_jax.tokenizers.published import SiglipTokenizer, canonicalize, clean, load_tokenizer
from dalle_jax.data.captions import all_captions
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.shapes.scenes import captions, random_scene
from dalle_jax.errors import UserError

START, END = 49406, 49407

BLOCKS = {
    "ascii": (0x20, 0x7F),
    "control": (0x00, 0x20),
    "latin": (0x80, 0x250),
    "combining": (0x300, 0x370),
    "greek and cyrillic": (0x370, 0x530),
    "arabic": (0x600, 0x700),
    "devanagari": (0x900, 0x980),
    "thai": (0xE00, 0xE80),
    "punctuation and signs": (0x2000, 0x2BFF),
    "cjk": (0x3000, 0xA000),
    "hangul": (0xAC00, 0xD7A4),
    "half of a surrogate pair": (0xD800, 0xE000),
    "forms": (0xFB00, 0x10000),
    "emoji": (0x1F000, 0x1FB00),
    "anything": (0x10000, 0x110000),
}
EDGES = [
    "",
    " ",
    "\n\t\r\x0b\x0c",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x7f\x9f",
    "\ufeffa cat\u200b\u200d\u00ad",
    "<start_of_text>a<end_of_text>",
    "<START_OF_TEXT> !<end_of_text> <|startoftext|><|endoftext|>",
    "it's we'll they'd i'm you've o'RE '\u017f 'S",
    "\u212a \u0130stanbul stra\u00dfe \u01c5 \ufb01ne \uff26\uff35\uff2c\uff2c",
    "1234 \u00bd \u2167 \u0664\u0662 3\u00b2",
    "&amp;amp;lt; &eacute; &#128512; &#xD800; &notit; &nosuch; &lt;b&gt; <i> &amp;",
    "don\u00e2\u20ac\u2122t \u00c3\u00a9t\u00c3\u00a9 l\u00c3\u00b6we sch\u00c3\u0192\u00c2\u00b6n",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001f44d\U0001f3fd",
    "a" * 1000,
    "the quick brown fox " * 50,
    "\u4e00\u4e8c\u4e09" * 333,
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643 " * 80,
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 " * 120,
    "!?" * 500,
    "___---___",
]


def strings(real, count):
    """Real captions as they are and mistreated, and text of every script; the same for the same seed."""
    rng = random.Random(0)

    def text(block, length):
        return "".join(chr(rng.randrange(*BLOCKS[block])) for _ in range(length))

    made = list(EDGES)
    while len(made) < count:
        caption = rng.choice(real)
        characters = text(rng.choice(list(BLOCKS)), rng.randrange(1, 30))
        entity = rng.choice(["&amp;", "&quot;", "&eacute;", "&#39;", "&nbsp;", "&hearts;"])
        mangled = (caption + characters).encode("utf-8", "replace").decode(rng.choice(["latin-1", "cp1252"]), "replace")
        made += [
            characters,
            f"{caption} {characters}",
            caption.replace(" ", entity, 1),
            caption.title() + entity,
            mangled,
            " ".join(rng.choices(real, k=6)),
            "".join(text(block, 3) + rng.choice(["", " "]) for block in rng.sample(list(BLOCKS), 4)),
            text(rng.choice(list(BLOCKS)), 1000) if rng.random() < 0.05 else characters.swapcase(),
        ]
    return made


@pytest.fixture(scope="module")
def real(request):
    """Captions of photographs and of emoji where these are at hand, and of drawn scenes."""
    rng = np.random.default_rng(0)
    found = [caption for _ in range(200) for caption in captions(random_scene(rng))]
    try:
        shards = [Path(request.getfixturevalue(name)) for name in ("emoji_glob", "cifar_glob")]
    except pytest.skip.Exception:
        return found
    paths = [str(path) for shard in shards for path in sorted(shard.parent.glob(shard.name))]
    return found + sorted(set(all_captions(WebDataset(paths))))


@pytest.fixture(scope="module")
def ours():
    return load_tokenizer()


def test_ids_that_openai_publishes(ours):
    ids = ours(["a diagram", "a dog", "a cat"])
    assert ids.dtype == np.int32 and ids.shape == (3, 77)
    assert ids[:, :5].tolist() == [
        [START, 320, 22697, END, 0],
        [START, 320, 1929, END, 0],
        [START, 320, 2368, END, 0],
    ]
    assert not ids[:, 4:].any() and ours.vocab_size == 49408 and ours.end_id == END


def test_ids_of_awkward_text(ours):
    """As open_clip gives them: entities, mojibake, ligatures, emoji, scripts, contractions."""
    expected = {
        "": [],
        "&amp;amp;": [261],
        "caf\u00c3\u00a9": [15304],
        "\ufb01ne": [3797],
        "it's 42!": [585, 568, 275, 273, 256],
        "\U0001f600": [7334],
        "\u4e16": [19759, 500],
        "\u0e44\u0e17\u0e22": [31718, 245, 33091],
        "\x00a\x07 cat\r\n": [320, 2368],
    }
    assert {text: ours.pieces(text) for text in expected} == expected


def test_cleaning():
    assert clean("  a\t b\n\nc ") == "a b c"
    assert clean("schÃ¶n &amp;amp; &lt;fine&gt;") == "schön & <fine>"
    assert canonicalize("A photo_of, (two) CATS.") == "a photo of two cats"


def test_long_captions_are_refused_or_cut(ours):
    text = "dog " * 75
    assert ours([text])[0, 76] == END
    with pytest.raises(UserError, match=r"caption 1 \('dog dog .*\.\.\.'\) takes 78 positions .* reads 77.*truncate"):
        ours(["a cat", text + "dog"])
    cut = load_tokenizer(truncate=True)([text + "cat", "a cat"])
    assert cut[0, -2:].tolist() == [1929, END] and cut[1, 3] == END
    assert load_tokenizer(context_length=8, truncate=True)([text]).shape == (1, 8)


def test_no_captions(ours):
    assert ours([]).shape == (0, 77)


def test_workers_get_a_copy(ours):
    copy = pickle.loads(pickle.dumps(load_tokenizer(context_length=32, truncate=True)))
    text = "a photograph of an astronaut, &c. " * 20
    assert copy.pieces(text) == ours.pieces(text) and copy([text]).shape == (1, 32)


def small_vocabulary(names):
    """`a`, `b`, and their merge, in the order of the release: symbols, symbols that end a word, merges, specials."""
    words = ["a", "b", "a</w>", "b</w>", "ab</w>", *names]
    return {word: i for i, word in enumerate(words)}, [("a", "b</w>")]


def write_checkpoint(folder, kind):
    vocab, merges = small_vocabulary(("<|startoftext|>", "<|endoftext|>"))
    if kind == "vocab.json":
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
        return
    start, end = (vocab.pop(name) for name in ("<|startoftext|>", "<|endoftext|>"))
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab}
    model["merges"] = merges if kind == "pairs" else [" ".join(merge) for merge in merges]
    added = [{"id": start, "content": "<|startoftext|>"}, {"id": end, "content": "<|endoftext|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))


@pytest.mark.parametrize("kind", ["vocab.json", "pairs", "strings"])
def test_the_files_of_a_checkpoint(tmp_path, kind):
    write_checkpoint(tmp_path, kind)
    tokenizer = load_tokenizer(tmp_path, context_length=8)
    assert tokenizer(["AB  ba b", ""]).tolist() == [[5, 4, 1, 2, 3, 6, 0, 0], [5, 6, 0, 0, 0, 0, 0, 0]]
    name = "vocab.json" if kind == "vocab.json" else "tokenizer.json"
    assert load_tokenizer(tmp_path / name, context_length=8).pieces("ab") == [4]


def test_the_whole_table_from_files_gives_the_same_ids(ours, tmp_path):
    vocab, merges = ours._table
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (tmp_path / "vocab.json").write_text(json.dumps({names.get(word, word): i for word, i in vocab.items()}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    texts = ["a photo of a \U0001f600 cat", "naïve façade, 1984"]
    np.testing.assert_array_equal(load_tokenizer(tmp_path)(texts), ours(texts))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "brings no tokenizer"),
        ({"vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}'}, "merges.txt is missing"),
        ({"vocab.json": "{}", "merges.txt": "#version\na b"}, "not a CLIP tokenizer"),
        ({"vocab.json": '{"<|startoftext|>": 0, "<|endoftext|>": 1}', "merges.txt": "#version\na b"}, "do not fit"),
        ({"vocab.json": "{}", "merges.txt": "#version\na b\na b c"}, "two symbols a line, not 'a b c'"),
        ({"vocab.json": "{}", "merges.txt": "#version\n\na b\na b c\nb c"}, "two symbols a line, not 'a b c'"),
        ({"tokenizer.json": "{"}, "not valid JSON"),
        ({"tokenizer.json": "[]"}, "JSON object"),
        ({"tokenizer.json": '{"model": {"type": "WordPiece"}}'}, "neither .* WordPiece"),
        ({"tokenizer.json": '{"model": {"type": "Unigram"}}'}, "cannot be read as a tokenizer"),
        ({"tokenizer.json": '{"model": {"type": "BPE", "end_of_word_suffix": "</w>"}}'}, "cannot be read .*merges"),
        ({"spiece.model": "no model"}, "not a SentencePiece model"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory, real):
    """A unigram model with the special ids of SigLIP's: pad 0, end 1, unknown 2."""
    path = tmp_path_factory.mktemp("siglip") / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([canonicalize(text) for text in real] * 2),
        model_prefix=str(path),
        model_type="unigram",
        vocab_size=140,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return path.with_suffix(".model")


def test_siglip_rows(spiece):
    tokenizer = load_tokenizer(spiece)
    assert isinstance(tokenizer, SiglipTokenizer)
    ids = tokenizer(["A small, red CIRCLE!", ""])
    assert ids.shape == (2, 64) and (ids[1] == 1).all()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece)).encode("a small red circle")
    assert ids[0].tolist() == pieces + [1] * (64 - len(pieces))
    with pytest.raises(UserError, match="reads 4"):
        load_tokenizer(spiece, context_length=4)(["a small red circle"])
    cut = load_tokenizer(spiece, context_length=4, truncate=True)(["a small red circle"])
    assert cut[0].tolist() == [*pieces[:3], 1]


def by_path(package, file):
    """A module of a peer without the rest of its package, which needs more."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location(f"{package}_{file}", Path(found.origin).with_name(f"{file}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parity
def test_ids_equal_open_clips(ours, real):
    theirs = by_path("open_clip", "tokenizer").SimpleTokenizer()
    texts = strings(real, 6000) + real[:6000]
    assert len(set(texts)) >= 5000
    different = [text for text in texts if ours.pieces(text) != theirs.encode(text)]
    assert not different, different[:5]
    np.testing.assert_array_equal(load_tokenizer(truncate=True)(texts), theirs(texts).numpy())


@pytest.mark.parity
def test_siglip_ids_equal_transformers(spiece, real, tmp_path):
    """From SentencePiece those of its slow tokenizer, from `tokenizer.json` those of its fast one, which open_clip
    runs: they part where their normalisers do. The text before them is open_clip's."""
    transformers = pytest.importorskip("transformers")
    peer = by_path("open_clip", "tokenizer")
    texts = strings(real, 6000)
    canonical = [peer.canonicalize_text(peer.basic_clean(text)) for text in texts]
    fast = transformers.T5Tokenizer.from_pretrained(str(spiece.parent), extra_ids=0)
    fast.save_pretrained(str(tmp_path))
    for theirs, file in ((transformers.SiglipTokenizer(str(spiece)), spiece), (fast, tmp_path)):
        ours = load_tokenizer(file)
        expected = [theirs(text, add_special_tokens=False).input_ids for text in canonical]
        different = [text for text, ids in zip(texts, expected, strict=True) if ours.pieces(text) != ids]
        assert not different, different[:5]
