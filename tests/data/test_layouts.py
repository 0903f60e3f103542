"""The layouts in which people hold images with captions, each read by its path alone."""

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dalle_jax.data.captions import all_captions
from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import BadReason
from dalle_jax.data.sources import open_source
from dalle_jax.errors import UserError


@pytest.fixture
def put(tmp_path, png):
    """`put({path: text, or None for an image})` -> the folder."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.write_bytes(png(len(name)))
            else:
                path.write_text(content)
        return tmp_path

    return write


def everything(source):
    return {source.key(i): source[i].captions for i in range(len(source))}


def left_out(source):
    return {left.reason: (left.count, left.example) for left in source.left_out}


def coco(*names):
    return json.dumps({
        "info": {},
        "images": [{"id": i, "file_name": name, "height": 8} for i, name in enumerate(names)],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "caption": f"{name} {k}"} for i, name in enumerate(names) for k in (0, 1)
        ],
    })  # fmt: skip


def twice(name):
    return (f"{name} 0", f"{name} 1")


COCO = {
    "train2017/1.jpg": None,
    "train2017/2.jpg": None,
    "val2017/1.jpg": None,
    "annotations/captions_train2017.json": coco("1.jpg", "2.jpg"),
    "annotations/captions_val2017.json": coco("1.jpg"),
    "annotations/instances_val2017.json": "{}",
}


def test_coco(put):
    root = put(COCO)
    train = {f"train2017/{name}": twice(name) for name in ("1.jpg", "2.jpg")}
    assert everything(Folder(str(root))) == train | {"val2017/1.jpg": twice("1.jpg")}
    named = Folder(str(root / "annotations" / "captions_train2017.json"))
    assert everything(named) == train
    assert left_out(named)["images that annotations/captions_train2017.json does not name"] == (1, "val2017/1.jpg")
    config = DataConfig(
        source=SourceKind.FOLDER, path=f"{root}/annotations/captions_{{split}}2017.json", eval_split="val"
    )
    assert everything(open_source(config)) == train
    assert everything(open_source(config, "eval")) == {"val2017/1.jpg": twice("1.jpg")}


@pytest.mark.parametrize("table", ["captions.txt", "Flickr8k_text/Flickr8k.token.txt", "Flickr8k.token.txt"])
@pytest.mark.parametrize("images", ["Images", "Flicker8k_Dataset"])
def test_flickr8k(put, table, images):
    if table == "captions.txt":
        text = 'image,caption\n1_a.jpg,"one , two"\n1_a.jpg,uno\n2_b.jpg,three\n'
    else:
        text = "1_a.jpg#0\tone , two\n1_a.jpg#1\tuno\n2_b.jpg#0\tthree\n"
    root = put({f"{images}/1_a.jpg": None, f"{images}/2_b.jpg": None, table: text, "Flickr8k_text/readme.txt": "x"})
    assert everything(Folder(str(root))) == {f"{images}/1_a.jpg": ("one , two", "uno"), f"{images}/2_b.jpg": ("three",)}


def test_flickr30k(put):
    text = "image_name| comment_number| comment\n1.jpg| 0| one , two\n1.jpg| 1   uno\n2.jpg| 0| three\n"
    root = put({"flickr30k_images/1.jpg": None, "flickr30k_images/2.jpg": None, "results.csv": text})
    source = Folder(str(root))
    assert everything(source) == {"flickr30k_images/1.jpg": ("one , two",), "flickr30k_images/2.jpg": ("three",)}
    assert left_out(source) == {"rows of results.csv with fewer fields than its header": (1, "line 3")}


METADATA = {
    "metadata.csv": "file_name,text\n0.png,zero\n1.png,one\n",
    "metadata.jsonl": '{"file_name": "0.png", "text": "zero"}\n{"file_name": "1.png", "text": "one"}\n',
    "metadata.json": '[{"file_name": "0.png", "text": "zero"}, {"file_name": "1.png", "text": "one"}]',
    "metadata.parquet": None,
}


def write_metadata(folder, name):
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"file_name": ["0.png", "1.png"], "text": ["zero", "one"]}), folder / name)
    else:
        (folder / name).write_text(METADATA[name])


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("folders", [("",), ("train/", "test/"), ("train/a/", "train/b/", "test/a/")])
def test_hugging_face_image_folders(put, name, folders):
    root = put({f"{folder}{i}.png": None for folder in folders for i in range(3)})
    for folder in folders:
        write_metadata(root / folder, name)
    source = Folder(str(root))
    wanted = {f"{folder}{i}.png": (text,) for folder in folders for i, text in enumerate(("zero", "one"))}
    assert everything(source) == wanted
    ((reason, (count, example)),) = left_out(source).items()
    assert reason.startswith("images that") and count == len(folders) and example.endswith("2.png")


def test_downloaded_images_of_a_table_with_tabs(put):
    text = "caption\turl\tfile\na cat\thttp://x/1\t0\na dog\thttp://x/2\t1\na cow\thttp://x/3\t2\n"
    root = put({"images/0.jpg": None, "images/1.png": None, "Train_GCC-training.tsv": text})
    source = Folder(str(root))
    assert everything(source) == {"images/0.jpg": ("a cat",), "images/1.png": ("a dog",)}
    assert left_out(source) == {f"rows of tables whose images are not in {root}": (1, "2")}
    named = Folder(str(root / "Train_GCC-training.tsv"), image_field="file")
    assert everything(named) == everything(source)


def test_downloaded_images_of_a_table_of_urls(put):
    """CC3M's: two columns without a header. An image is found where it is called as its URL ends."""
    text = "a cat, asleep\thttp://x/a/cat%201.jpg?w=640\na dog\thttps://y/dog\na cow\thttp://x/cow.jpg\n"
    root = put({"images/cat 1.jpg": None, "images/dog.png": None, "Train_GCC-training.tsv": text})
    source = Folder(str(root))
    assert everything(source) == {"images/cat 1.jpg": ("a cat, asleep",), "images/dog.png": ("a dog",)}
    assert left_out(source) == {f"rows of tables whose images are not in {root}": (1, "cow.jpg")}
    (root / "Train_GCC-training.tsv").write_text(text + "an ox\thttp://z/dog\n")
    source = Folder(str(root))
    assert list(everything(source)) == ["images/cat 1.jpg"], "two URLs end in dog, and nothing says whose the file is"
    assert left_out(source)["file names in which several URLs of Train_GCC-training.tsv end"] == (1, "dog")


def test_downloaded_images_that_are_called_otherwise(put):
    """By number, say: whether these count from 0 or from 1 nothing says, and one that matches does so by chance."""
    text = "".join(f"caption {i}\thttp://x/{name}.jpg\n" for i, name in enumerate(["one", "two", "2", "four", "five"]))
    root = put({**{f"images/{i}.jpg": None for i in range(5)}, "captions.tsv": text})
    with pytest.raises(UserError, match="only 1 of 5 images are called as one of them ends: add a field"):
        Folder(str(root))


def test_caption_files(put):
    root = put({
        "a.jpg": None, "a.caption": "one\nuno", "b.png": None, "b.TXT": "two", "c.jpg": None, "c.txt": "three",
        "c.caption": "other", "d.jpg": None, "e.txt": "lonely", "f.pdf": "", ".DS_Store": "", "._a.jpg": "",
        "g.heic": "",
    })  # fmt: skip
    source = Folder(str(root))
    assert everything(source) == {"a.jpg": ("one", "uno"), "b.png": ("two",), "c.jpg": ("three",), "d.jpg": ()}
    assert left_out(source) == {
        "files whose names begin with a dot": (2, ".DS_Store"),
        "caption files of images that have their captions from elsewhere": (1, "c.caption"),
        "caption files without an image": (1, "e.txt"),
        "files with other extensions": (2, "f.pdf"),
    }
    assert everything(pickle.loads(pickle.dumps(source))) == everything(source)
    (root / "c.txt").write_bytes(b"\xe9")
    assert Folder(str(root))[2].captions_fault is BadReason.CAPTION_ENCODING


def test_class_folders_with_templates(put):
    root = put({"cat/1.jpg": None, "cat/deep/2.jpg": None, "old_dog/1.jpg": None, "old_dog/1.txt": "its own"})
    config = DataConfig(
        source=SourceKind.FOLDER, path=str(root), eval_fraction=0.0, caption_templates=("a photo of a {}", "{}")
    )
    source = open_source(config)
    assert everything(source) == {
        "cat/1.jpg": ("a photo of a cat", "cat"),
        "cat/deep/2.jpg": ("a photo of a cat", "cat"),
        "old_dog/1.jpg": ("its own",),
    }
    assert source.class_names == ("cat", "old_dog") and [source[i].label for i in range(3)] == [0, 0, 1]
    put({"stray.jpg": None})
    with pytest.raises(UserError, match="'stray.jpg' lies in"):
        open_source(config)


def test_a_table_without_captions_does_not_hide_caption_files(put, caplog):
    rows = "file_name,licence\ncat/2.jpg,CC0\ncat/1.jpg,CC0\n"
    root = put({"cat/1.jpg": None, "cat/2.jpg": None, "cat/1.txt": "one", "cat/2.txt": "two", "metadata.csv": rows})
    with caplog.at_level("WARNING", "dalle_jax"):
        source = Folder(str(root))
    assert everything(source) == {"cat/2.jpg": ("two",), "cat/1.jpg": ("one",)}, "its rows, in its order"
    assert "metadata.csv has no field of captions (it has file_name, licence" in caplog.text
    assert everything(Folder(str(root), caption_field="licence")) == {"cat/2.jpg": ("CC0",), "cat/1.jpg": ("CC0",)}


def test_other_tables_do_not_hide_caption_files(put):
    root = put({
        "a/1.jpg": None, "a/1.txt": "one", "a/metadata.csv": "file_name,text\n1.jpg,other\n",
        "results.csv": "step,loss\n1,2\n",
    })  # fmt: skip
    source = Folder(str(root))
    assert everything(source) == {"a/1.jpg": ("one",)}
    assert left_out(source) == {"tables that are not read": (2, "a/metadata.csv")}


def test_files_that_are_tables_of_something_else(put):
    root = put({"1.jpg": None, "results.csv": "step,loss\n1,2\n", "metadata.json": '{"name": "mine"}'})
    assert everything(Folder(str(root))) == {"1.jpg": ()}


def test_images_that_lie_elsewhere(put):
    root = put({"Images/1.jpg": None, "captions.csv": "image,caption\n1.jpg,one\n", "other/x.jpg": None})
    assert everything(Folder(str(root))) == {"Images/1.jpg": ("one",)}
    put({"small/1.jpg": None})
    with pytest.raises(UserError, match="'1.jpg' and others may be images in Images or in small of"):
        Folder(str(root))
    (root / "captions.csv").write_text("image,caption\nnone.jpg,one\nnone2.jpg,two\n")
    with pytest.raises(
        UserError, match=r"none of the 2 images that captions.csv names is there: 'none.jpg' and .*looked"
    ):
        Folder(str(root))


def test_captions_are_read_without_images(put):
    root = put({"1.jpg": None, "2.jpg": None, "captions.csv": "file_name,caption\n1.jpg,one\n2.jpg,two\n"})
    source = Folder(str(root))
    (root / "1.jpg").unlink()
    assert list(all_captions(source)) == ["one", "two"] and source.captioned() == 2
    (root / "captions.csv").unlink()
    put({"2.txt": "two"})
    source = Folder(str(root))
    (root / "2.jpg").unlink()
    assert list(all_captions(source)) == ["two"] and source.captioned() == 1


def test_tars_of_img_and_cap(write_tar, png):
    source = WebDataset(
        [write_tar("x.tar", {"0.img": png(0), "0.cap": b"one", "1.IMG": png(1), "1.cap": b"two\nzwei"})]
    )
    assert everything(source) == {"0": ("one",), "1": ("two", "zwei")} and source[1].image == png(1)


def test_data_of_another_kind(put):
    root = put({"data/x.parquet": "", "readme.md": ""})
    with pytest.raises(UserError, match="holds no image .* but data/x.parquet: set config.data.source=parquet"):
        Folder(str(root))


def test_fields_of_no_table(put):
    root = put({"1.jpg": None, "1.txt": "x"})
    for option in ("caption_field", "image_field"):
        with pytest.raises(UserError, match=f"config.data.{option} has no effect: there is no table"):
            Folder(str(root), **{option: "title"})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.jpg": None}, "none at 1 samples looked at.*files of the images' names that end in .txt or .caption$"),
        ({"cat/1.jpg": None}, "of folders that are classes, config.data.caption_templates makes captions"),
        ({"1.jpg": None, "1.txt": " \n"}, "looked for in files of the images' names"),
        ({"1.jpg": None, "1.txt": b"\xe9"}, "those of 1 are not UTF-8"),
        ({"1.jpg": None, "captions.csv": "file_name,alt\n1.jpg,x\n"}, r"captions.csv has no field of captions .*alt"),
        (
            {"1.jpg": None, "captions.csv": "file_name,caption\n1.jpg,\n"},
            "looked for in the field caption of captions.csv",
        ),
    ],
)
def test_there_are_no_captions_for_a_reason(put, files, message):
    root = put({name: content for name, content in files.items() if not isinstance(content, bytes)})
    for name, content in files.items():
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
    source = Folder(str(root))
    with pytest.raises(UserError, match=message):
        list(all_captions(source))


def test_captions_that_cannot_be_read(put):
    root = put({"1.jpg": None, "1.txt": "one"})
    source = Folder(str(root))
    (root / "1.txt").unlink()
    with pytest.raises(UserError, match=r"they cannot be read \(1 missing\)"):
        list(all_captions(source))
