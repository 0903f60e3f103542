"""Splits that a folder names itself: what is trained on, what is held out, and what a person is told of it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_jax.data.account import in_lines
from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.sources import open_source, open_splits
from dalle_jax.errors import UserError

CAPTIONS = '{"images": [%s], "annotations": [%s]}'


def coco(*numbers):
    images = ", ".join(f'{{"id": {i}, "file_name": "{i}.png"}}' for i in numbers)
    return CAPTIONS % (images, ", ".join(f'{{"image_id": {i}, "caption": "number {i}"}}' for i in numbers))


def table(*names):
    return "file_name,text\n" + "".join(f"{name},text of {name}\n" for name in names)


COCO = {
    **{f"train2017/{i}.png": None for i in range(4)}, **{f"val2017/{i}.png": None for i in range(2)},
    "annotations/captions_train2017.json": coco(0, 1, 2, 3), "annotations/captions_val2017.json": coco(0, 1),
}  # fmt: skip
HUGGING_FACE = {
    **{f"{split}/{i}.png": None for split in ("train", "validation", "test") for i in range(3)},
    **{f"{split}/metadata.csv": table("0.png", "1.png", "2.png") for split in ("train", "validation", "test")},
}
FLICKR = {
    **{f"Images/{i}.jpg": None for i in range(5)},
    "captions.txt": "image,caption\n" + "".join(f"{i}.jpg,text {i}\n" for i in range(5)),
    "Flickr_8k.trainImages.txt": "0.jpg\n3.jpg\n", "Flickr_8k.devImages.txt": "1.jpg\n",
    "Flickr_8k.testImages.txt": "2.jpg\n",
}  # fmt: skip
PLAIN = {f"{split}/{i}.{end}": text for split in ("train", "val") for i in range(3) for end, text in
         (("png", None), ("txt", f"{split} {i}"))}  # fmt: skip


@pytest.fixture
def config(tmp_path, png):
    """`config(files, **options)`: of a folder with these files."""

    def write(files, **options):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(len(name)) if content is None else content.encode())
        return DataConfig(source=SourceKind.FOLDER, **{"path": str(tmp_path), **options})

    return write


def read(config):
    """Keys by split, and the account; one split opened alone is the same."""
    sources = open_splits(config)
    keys = {split: [source.key(i) for i in range(len(source))] for split, source in sources.items()}
    for split, names in keys.items():
        alone = open_source(config, split)
        assert [alone.key(i) for i in range(len(alone))] == names
        assert all(alone[i].captions for i in range(len(alone)))
    return keys, in_lines(config, sources).splitlines()


def test_coco(config):
    keys, (head, said) = read(config(COCO))
    train = [f"train2017/{i}.png" for i in range(4)]
    assert keys == {"train": train, "eval": ["val2017/0.png", "val2017/1.png"]}
    assert "6 images, 6 with captions, 2 held out (33.33%; a split of its own): " in head
    assert said == "data: of its splits, train2017 is trained on, val2017 held out"
    keys, (head, said) = read(config(COCO, eval_split="val"))
    assert keys["train"] == train and "2 held out (33.33%; eval_split=val)" in head
    keys, (_, said, left) = read(config(COCO, eval_fraction=0.0))
    assert keys == {"train": train} and said == "data: of its splits, train2017 is trained on"
    assert left == ("data: left out: images of the split val2017, which is not asked for: 2, such as val2017/0.png")


def test_everything_is_trained_on_where_a_person_says_so(config):
    keys, (head, said) = read(config(COCO, split="all", eval_fraction=0.3))
    assert len(keys["train"] + keys["eval"]) == 6 and "eval_fraction=0.3" in head
    assert said == "data: its splits train2017, val2017 are read as one"
    with pytest.raises(UserError, match="eval_split='val' and split='all': what is held out cannot be trained on"):
        open_splits(config(COCO, split="all", eval_split="val"))


def test_hugging_face(config):
    def wanted(*splits):
        return [f"{split}/{i}.png" for split in splits for i in range(3)]

    keys, (_, said, left) = read(config(HUGGING_FACE))
    assert keys == {"train": wanted("train"), "eval": wanted("validation")}
    assert said == "data: of its splits, train is trained on, validation held out"
    assert left.startswith("data: left out: images of the split test, which is not asked for: 3, such as test/0.png")
    keys, _ = read(config(HUGGING_FACE, split="val", eval_split="test"))
    assert keys == {"train": wanted("validation"), "eval": wanted("test")}
    assert len(open_source(config(HUGGING_FACE), "test")) == 3
    for options in ({"split": "trian"}, {"eval_split": "unseen"}):
        with pytest.raises(UserError, match=r"has no split '.*' \(it has test, train, validation\): write \{split\}"):
            open_splits(config(HUGGING_FACE, **options))
    with pytest.raises(UserError, match="are one split of .*: name two"):
        open_splits(config(HUGGING_FACE, eval_split="train"))


@pytest.mark.parametrize("folder", ["data", "a/b"])
def test_tables_that_lie_deeper(config, folder):
    files = {f"{folder}/{name}": content for name, content in HUGGING_FACE.items() if "validation" not in name}
    keys, (_, said) = read(config(files))
    assert keys["eval"] == [f"{folder}/test/{i}.png" for i in range(3)] and len(keys["train"]) == 3
    assert said == "data: of its splits, train is trained on, test held out"


def test_lists_of_flickr8k(config):
    keys, (_, said, *left) = read(config(FLICKR))
    assert keys == {"train": ["Images/0.jpg", "Images/3.jpg"], "eval": ["Images/1.jpg"]}
    assert said == "data: of its splits, train is trained on, dev held out"
    assert left == [
        "data: left out: images that no split names: 1, Images/4.jpg",
        "data: left out: images of the split test, which is not asked for: 1, Images/2.jpg",
    ]
    keys, _ = read(config(FLICKR, eval_split="test"))
    assert keys["eval"] == ["Images/2.jpg"]
    assert read(config(FLICKR, split="all"))[1][1] == "data: its splits dev, test, train are read as one"


def test_lists_as_they_are_distributed(config):
    """In a folder of their own, with other texts."""
    texts = {name: content for name, content in FLICKR.items() if name.startswith("Flickr_8k")}
    token = "".join(f"{i}.jpg#0\ttext {i}\n" for i in range(5))
    texts |= {"Flickr8k.token.txt": token, "Flickr8k.lemma.token.txt": token, "readme.txt": "x"}
    files = {f"Flickr8k_text/{name}": content for name, content in texts.items()}
    files |= {f"Flicker8k_Dataset/{i}.jpg": None for i in range(5)}
    keys, lines = read(config(files))
    assert keys["eval"] == ["Flicker8k_Dataset/1.jpg"] and len(keys["train"]) == 2
    assert lines[-1].startswith("data: left out: caption files without an image: 2, such as Flickr8k_text/Flickr8k.lem")


def test_folders_of_other_tables_are_no_splits(config):
    files = {f"{name}/{i}.png": None for name in ("train", "car") for i in range(2)}
    files |= {f"{name}/metadata.csv": table("0.png", "1.png") for name in ("train", "car")}
    keys, lines = read(config(files, eval_fraction=0.3))
    assert len(keys["train"] + keys["eval"]) == 4 and len(lines) == 1


def test_one_split_alone_is_all_there_is(config):
    files = {name: content for name, content in COCO.items() if "train" in name}
    keys, lines = read(config(files, eval_fraction=0.3))
    assert len(keys["train"] + keys["eval"]) == 4 and len(lines) == 1
    with pytest.raises(UserError, match="has no split 'val'"):
        open_splits(config(files, eval_split="val"))
    for wrong in ({"split": "val"}, {"eval_split": "unseen"}):
        with pytest.raises(UserError, match=r"has no split '.*': write \{split\} in the path where"):
            open_splits(config(files, **wrong))


def test_folders_without_tables_are_read_as_one_and_said_to_be(config, tmp_path):
    keys, (_, said) = read(config(PLAIN))
    assert len(keys["train"] + keys["eval"]) == 6
    assert said == (
        "data: what is called train and val is read as one: write {split} in config.data.path where these names stand"
    )
    keys, lines = read(config(PLAIN, path=f"{tmp_path}/{{split}}", eval_split="val"))
    assert keys == {split: ["0.png", "1.png", "2.png"] for split in ("train", "eval")} and len(lines) == 1


def test_a_table_of_several_splits_is_said_to_be_one(config):
    files = {f"{split}/{i}.png": None for split in ("train", "test") for i in range(2)}
    rows = [(f"{split}/{i}.png", split) for split in ("train", "test") for i in range(2)]
    files["metadata.csv"] = "file_name,text\n" + "".join(f"{name},a {split}\n" for name, split in rows)
    _, (head, said) = read(config(files))
    assert "4 images" in head and said.endswith("what is called train and test is read as one: write a table for each")
    files["metadata.csv"] = "file_name,text,split\n" + "".join(f"{name},a,{split}\n" for name, split in rows)
    _, (_, said) = read(config(files))
    assert (
        said
        == "data: the column split of metadata.csv is not read, and its splits are read as one: write a table for each"
    )


def test_splits_are_no_classes(config):
    files = {f"{split}/{name}/0.png": None for split in ("train", "val") for name in ("cat", "dog")}
    options = {"caption_templates": ("a {}",)}
    with pytest.raises(UserError, match=r"are splits \(train, val\) and no classes: write .*\{split\}'"):
        open_splits(config(files, **options))
    path = config(files).path + "/{split}"
    keys, _ = read(config(files, path=path, eval_split="val", **options))
    assert keys == {split: ["cat/0.png", "dog/0.png"] for split in ("train", "eval")}


@pytest.mark.parametrize("source", [SourceKind.WEBDATASET, SourceKind.PARQUET])
@pytest.mark.parametrize("name", ["{split}-00000-of-00001.{end}", "cc-{split}_0.{end}", "{split}/0.{end}"])
def test_files_of_several_splits_are_read_as_one_and_said_to_be(tmp_path, write_tar, png, source, name):
    end = {SourceKind.WEBDATASET: "tar", SourceKind.PARQUET: "parquet"}[source]
    for split in ("train", "validation"):
        file = tmp_path / "test" / name.format(split=split, end=end)  # a folder above all says nothing
        file.parent.mkdir(parents=True, exist_ok=True)
        if end == "tar":
            write_tar(f"test/{name.format(split=split, end=end)}", {f"{i}.png": png(i) for i in range(4)})
        else:
            pq.write_table(pa.table({"image": [png(i) for i in range(4)], "text": ["a"] * 4}), file)
    path = f"{tmp_path}/test/{name.format(split='*', end=end)}"
    head, said = in_lines(config := DataConfig(source=source, path=path), open_splits(config)).splitlines()
    assert "8 images" in head and "what is called train and validation is read as one: write {split} in" in said
    path = f"{tmp_path}/test/{name.replace('{end}', end)}"
    config = DataConfig(source=source, path=path, eval_split="validation")
    (head,) = in_lines(config, open_splits(config)).splitlines()
    assert "8 images" in head and "4 held out (50.00%; eval_split=validation)" in head
