"""Data sets with classes: folders by class, several classes an image, captions made from names."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dalle_jax.data.class_captions import ClassCaptions, fill
from dalle_jax.data.config import DataConfig, SourceKind
from dalle_jax.data.readers.class_folder import ClassFolder, in_class_order
from dalle_jax.data.readers.tfds import Tfds
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import Record, Subset
from dalle_jax.data.relabelled import Relabelled
from dalle_jax.data.sources import open_source
from dalle_jax.errors import UserError


def test_a_folder_for_each_class(tmp_path, png):
    for i, name in enumerate(("dog/1.png", "cat/deep/a.jpg", "cat/b.png", "dog/2.webp")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(i))
    source = ClassFolder(str(tmp_path))
    assert source.class_names == ("cat", "dog") and source.has_labels
    found = {source[i].key: source[i].label for i in range(len(source))}
    assert found == {"cat/b.png": 0, "cat/deep/a.jpg": 0, "dog/1.png": 1, "dog/2.webp": 1}
    assert Subset(source, np.array([0]), "part").class_names == ("cat", "dog")
    (tmp_path / "stray.png").write_bytes(png())
    with pytest.raises(UserError, match="'stray.png' lies in .* itself"):
        ClassFolder(str(tmp_path))


def test_folders_that_are_numbers_are_counted_as_such(tmp_path, png):
    for name in ("10", "9", "2", "0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    source = ClassFolder(str(tmp_path))
    assert source.class_names == ("0", "2", "9", "10")
    assert {source[i].key: source[i].label for i in range(4)} == {
        "0/a.png": 0,
        "2/a.png": 1,
        "9/a.png": 2,
        "10/a.png": 3,
    }
    assert in_class_order(["b", "10", "9"]) == ("10", "9", "b")
    assert in_class_order(["1", "01", "²"]) == ("01", "1", "²") and in_class_order(["2", "1", "01"]) == ("01", "1", "2")


def test_labels_in_the_order_of_other_names(list_source):
    records = [Record(b"", (), "a", label=1), Record(b"", (), "b", labels=(0, 1)), Record(b"", (), "c", label=-1)]
    source = list_source(records)
    source.class_names = ("cat", "owl")
    other = Relabelled(source, ("ape", "owl", "cat"))
    assert [(other[i].label, other[i].labels) for i in range(3)] == [(1, None), (None, (2, 1)), (-1, None)]
    assert other.class_names == ("ape", "owl", "cat") and other.key(1) == source.key(1) and len(other) == 3


def npy(marks):
    file = io.BytesIO()
    np.save(file, np.asarray(marks))
    return file.getvalue()


def test_several_classes_of_a_picture_in_a_tar(write_tar, png):
    members = {"a.png": png(1), "a.npy": npy([1, 0, 1]), "b.png": png(2), "b.npy": npy([0, 0, 0])}
    members |= {"c.png": png(3), "c.npy": b"no array", "d.png": png(4), "d.npy": npy([[1]])}
    source = WebDataset([write_tar("many.tar", members)])
    assert [source[i].labels for i in range(4)] == [(0, 2), (), None, None] and not source.has_labels


class Marked(tfds.core.GeneratorBasedBuilder):
    """Images with every class that they show, as VOC has them."""

    VERSION = tfds.core.Version("1.0.0")
    png: bytes = b""

    def _info(self):
        kinds = tfds.features.ClassLabel(names=["cat", "dog", "sheep"])
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "labels": tfds.features.Sequence(kinds)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for i, labels in enumerate(([2, 0, 2], [], [1])):
            yield i, {"image": io.BytesIO(self.png), "labels": labels}


def test_several_classes_of_a_picture_in_tfds(tmp_path, png):
    Marked.png = png(5)
    builder = Marked(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    source = Tfds(builder, "test")
    assert source.class_names == ("cat", "dog", "sheep") and not source.has_labels
    assert sorted(source[i].labels for i in range(3)) == [(), (0, 2), (1,)] and source[0].label is None


@pytest.mark.parametrize(
    ("template", "name", "caption"),
    [
        ("a photo of a {}", "cat", "a photo of a cat"),
        ("a photo of a {}", "aquarium_fish", "a photo of an aquarium fish"),
        ("A {}, a bird", "owl", "An owl, a bird"),
        ("{}", "airplane", "airplane"),
        ("a photo of the {}", "airplane", "a photo of the airplane"),
        ("a big {}", "airplane", "a big airplane"),
    ],
)
def test_filled_templates(template, name, caption):
    assert fill(template, name) == caption


def test_captions_from_class_names(tmp_path, png, list_source):
    for name in ("cat/1.png", "cat/2.png", "owl/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "cat/2.txt").write_text("my own cat")
    source = ClassCaptions(ClassFolder(str(tmp_path)), ["a {}", "the {}"])
    captions = [source[i].captions for i in range(3)]
    assert captions == [("a cat", "the cat"), ("my own cat",), ("an owl", "the owl")]
    assert source.captions(0) == captions[0] and source.class_names == ("cat", "owl") and source.has_labels
    unlabelled = list_source([Record(png(), (), "k", label=-1)])
    unlabelled.class_names = ("cat",)
    assert ClassCaptions(unlabelled, ["a {}"])[0].captions == ()
    with pytest.raises(UserError, match="caption_templates: 'a cat' has no"):
        ClassCaptions(source, ["a cat"])


def test_the_config_makes_captions(tmp_path, png):
    class Labelled(Marked):
        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3))}
            features["label"] = tfds.features.ClassLabel(names=["ant", "bee"])
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _generate_examples(self):
            yield 0, {"image": io.BytesIO(self.png), "label": 0}

    Labelled.png = png()
    builder = Labelled(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    config = DataConfig(
        source=SourceKind.TFDS,
        path=str(builder.data_path),
        split="test",
        eval_fraction=0.0,
        caption_templates=("a photo of a {}",),
    )
    assert open_source(config)[0].captions == ("a photo of an ant",)


def test_captions_of_class_names_are_read_without_pictures(tmp_path, png):
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png())
    (tmp_path / "dog/1.txt").write_text("its own")
    source = ClassCaptions(ClassFolder(str(tmp_path)), ["a {}"])
    assert (
        [source.captions(i) for i in range(2)] == [source[i].captions for i in range(2)] == [("a cat",), ("its own",)]
    )
    for name in ("cat/1.png", "dog/1.png"):
        (tmp_path / name).unlink()
    assert [source.captions(i) for i in range(2)] == [("a cat",), ("its own",)]
