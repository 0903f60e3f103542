"""Every layout that docs/data.md lists is read as it says there, from folders that a person might have."""

import ast
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_jax.data.account import in_lines
from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.options import check_opened, check_options
from dalle_jax.data.sources import open_splits

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
SPLITS = ("train", "validation", "test")
COUNT = 6


def images(folder="", end="jpg"):
    return {f"{folder}{i}.{end}": None for i in range(COUNT)}


def table(header, row, numbers=range(COUNT)):
    return header + "".join(row.format(i) for i in numbers)


def coco():
    return json.dumps({
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(COUNT)],
        "annotations": [{"image_id": i, "caption": f"text {i}"} for i in range(COUNT)],
    })  # fmt: skip


CSV = table("file_name,caption\n", "{0}.jpg,text {0}\n")
OBJECTS = [{"file_name": f"{i}.jpg", "text": f"text {i}"} for i in range(COUNT)]
METADATA = {"csv": CSV, "jsonl": "\n".join(map(json.dumps, OBJECTS)), "json": json.dumps(OBJECTS), "parquet": OBJECTS}
TEXTS = {f"{i}.{end}": f"text {i}" for i, end in enumerate(["txt", "caption", "TXT"] * 2)}
TOKENS = table("", "{0}.jpg#0\ttext {0}\n")
URLS = table("", "text {0}\thttp://host/{0}.jpg\n")
BY_SPLIT = {f"{split}/{name}": content for split in ("train", "val") for name, content in (images() | TEXTS).items()}
CLASSES = images("cat/") | images("dog/")

LAYOUTS = {
    "images with `.txt` or `.caption` files beside them": [images() | TEXTS],
    "a table of your own": [
        *({**images(), f"captions.{end}": content} for end, content in METADATA.items()),
        {**images(), "captions.tsv": CSV.replace(",", "\t")},
    ],
    "a table of another name": [{**images(), "list.csv": CSV}],
    "Hugging Face's image folders": [
        {f"{folder}{name}": content for folder in folders for name, content in (images() | {file: own}).items()}
        for file, own in ((f"metadata.{end}", content) for end, content in METADATA.items())
        for folders in ([""], [f"{split}/" for split in SPLITS])
    ],
    "COCO": [
        {**images("train2017/"), "annotations/captions_train2017.json": coco()},
        {**images("train2017/"), **images("val2017/"),
         **{f"annotations/captions_{split}2017.json": coco() for split in ("train", "val")}},
    ],
    "Flickr8k": [
        {**images("Images/"), "captions.txt": table("image,caption\n", "{0}.jpg,text {0}\n")},
        {**images("Flicker8k_Dataset/"), "Flickr8k.token.txt": TOKENS},
        {**images("Flicker8k_Dataset/"), "Flickr8k.token.txt": TOKENS, "Flickr_8k.trainImages.txt": "0.jpg\n1.jpg\n",
         "Flickr_8k.devImages.txt": "2.jpg\n3.jpg\n", "Flickr_8k.testImages.txt": "4.jpg\n5.jpg\n"},
    ],
    "Flickr30k": [
        {**images("flickr30k_images/"), "results.csv": table("image_name| comment_number| comment\n",
                                                             "{0}.jpg| 0| text {0}\n")},
        {**images("flickr30k_images/"), "results_20130124.token": TOKENS},
    ],
    "open_clip's tables": [{**images("a/"), "list.csv": table("filepath\ttitle\n", "a/{0}.jpg\ttext {0}\n")}],
    "downloaded images beside a `.tsv`": [
        {**images("images/"), "Train_GCC-training.tsv": URLS},
        {**images("images/"), "Train_GCC-training.tsv": "caption\turl\n" + URLS},
    ],
    "the same, called otherwise": [
        {**images("images/"), "cc3m.tsv": table("caption\turl\tfile\n", "text {0}\thttp://host/x{0}\t{0}\n")},
    ],
    "class folders, ": [CLASSES],
    "class folders in folders of splits": [{f"{split}/{name}": None for split in ("train", "val") for name in CLASSES}],
    "images with `.txt` files in folders of splits": [BY_SPLIT],
}  # fmt: skip
HELD_OUT = {"COCO": "val2017", "Hugging Face's image folders": "validation", "Flickr8k": "dev"}


def documented():
    """Of every row of the table: the layout, the path, and the option as it is written there; "" for none."""
    section = DOCS.read_text().split("| layout | `path` | one option more |\n|---|---|---|\n")[1].split("\n\n")[0]
    for row in section.splitlines():
        layout, path, option = (cell.strip() for cell in row.strip("|").split(" | "))
        yield layout, path.strip("`"), next(iter(re.findall(r"`(\w+=.*?)`", option)), "")


def cases():
    for layout, path, option in documented():
        (name,) = [name for name in LAYOUTS if layout.startswith(name)]
        for i, files in enumerate(LAYOUTS[name]):
            yield pytest.param(name, path, option, files, id=f"{name}-{i}")


def test_the_table_has_every_layout():
    layouts = [layout for layout, _, _ in documented()]
    assert [name for name in LAYOUTS if not any(layout.startswith(name) for layout in layouts)] == []
    assert len(layouts) == len(LAYOUTS)


@pytest.mark.parametrize(("name", "path", "option", "files"), list(cases()))
def test_a_layout_is_read_as_the_docs_say(tmp_path, png, name, path, option, files):
    for file, content in files.items():
        place = tmp_path / "mine" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            pq.write_table(pa.Table.from_pylist(content), place)
        else:
            place.write_bytes(png(len(file)) if content is None else content.encode())
    options = {}
    if option:
        key, _, value = option.partition("=")
        options[key] = ast.literal_eval(value) if value.startswith("(") else value
    if name == "class folders in folders of splits":
        options["caption_templates"] = ("a photo of a {}",)
    config = DataConfig(source=SourceKind.FOLDER, path=path.replace("mine", str(tmp_path / "mine"), 1), **options)
    check_options(config)
    sources = open_splits(config)
    check_opened(config, sources)
    lines = in_lines(config, sources).splitlines()
    count = sum(content is None for file, content in files.items() if not file.startswith("test/"))
    if any("trainImages" in file for file in files):
        count -= 2  # those for tests
    assert lines[0].startswith(f"data: {count} images, {count} with captions, ")
    records = {split: [source[i] for i in range(len(source))] for split, source in sources.items()}
    assert all(record.captions for found in records.values() for record in found) and records["eval"]
    parts = {split: {record.key for record in found} for split, found in records.items()}
    divided = [line for line in lines if "of its splits, " in line]
    if divided:
        assert divided[0].endswith(f"{HELD_OUT[name]} held out")
    assert bool(divided) == any(word in file for file in files for word in ("validation/", "val2017/", "devImages"))
    assert "{split}" in path or not parts["train"] & parts["eval"]
