"""What a table of many rows takes, and its texts in one piece of memory."""

import gc
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle_jax import storage
from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.readers.packed import PackedCaptions, Texts
from dalle_jax.data.records import BadReason

TEXTS = st.lists(st.text(st.characters()))
CAPTIONS = st.lists(st.tuples(TEXTS.map(tuple), st.sampled_from([None, BadReason.CAPTION_ENCODING])))


@given(TEXTS)
def test_texts_are_a_list(texts):
    packed = pickle.loads(pickle.dumps(Texts(texts)))
    assert list(packed) == texts and packed[1:] == texts[1:] and len(packed) == len(texts)
    assert texts == [] or packed[-1] == texts[-1]
    with pytest.raises(IndexError):
        packed[len(texts)]


def test_any_surrogates_come_back():
    texts = ["a\udcff", "\ud800", "\U0001f600", ""]
    assert list(Texts(texts)) == texts


@given(CAPTIONS)
def test_captions_are_a_list(captions):
    packed = pickle.loads(pickle.dumps(PackedCaptions(captions)))
    assert list(packed) == captions and packed.captioned() == sum(bool(texts) for texts, _ in captions)


ROWS = 3_000


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl"])
def test_the_index_of_a_row_is_tens_of_bytes(tmp_path, monkeypatch, name):
    """Beside its texts: names of about 20 bytes and captions of about 20."""
    images = [f"images/{i:09}.jpg" for i in range(ROWS)]
    if name.endswith(".csv"):
        rows = ["file_name,caption", *(f"{image},caption number {i}" for i, image in enumerate(images))]
    else:
        rows = [f'{{"image": "{image}", "text": "caption number {i}"}}' for i, image in enumerate(images)]
    (tmp_path / name).write_text("\n".join(rows))
    monkeypatch.setattr(storage, "walk_links", lambda root: ([name, *images], [], []))
    Folder(str(tmp_path))  # which imports and caches
    gc.collect()
    tracemalloc.start()
    source = Folder(str(tmp_path))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] / ROWS
    tracemalloc.stop()
    assert len(source) == ROWS and source.captions(ROWS - 1) == (f"caption number {ROWS - 1}",)
    # A piece of memory that grows has an eighth to spare, and other threads of the process allocate too.
    assert held < 40 + 80, held  # as Python's objects: 343
