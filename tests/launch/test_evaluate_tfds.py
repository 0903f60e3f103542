"""The suites on data sets of TFDS: what builders call the classes, which field is the label, and a run of each."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from clip_jax.evaluation.metrics import Metric
from clip_jax.evaluation.prompts import published_prompts
from dalle_jax.data.readers.tfds import Tfds
from dalle_jax.errors import UserError
from launch.evaluation import linear_probe, zero_shot
from launch.evaluation.datasets import find_prompts, open_split
from tests.launch.test_evaluate import COLOURS, FLAGS, ColourClip, picture


def class_names(builder, tmp_path):
    features = tfds.builder(builder, data_dir=str(tmp_path)).info.features
    label = features["label"] if "label" in features else features["labels"].feature
    return tuple(label.names)


PUBLISHED = [
    ("caltech101", "Caltech101", {"yin_yang": "yin and yang symbol", "faces": "off-center face", "ant": "ant"}),
    ("cars196", "StanfordCars", {"Acura TL Sedan 2012": "Acura TL Sedan 2012"}),
    ("dtd", "DescribableTextures", {"polka-dotted": "polka-dotted"}),
    ("eurosat/rgb", "EuroSAT", {"AnnualCrop": "annual crop land", "SeaLake": "lake or sea", "River": "river"}),
    ("eurosat/all", "EuroSAT", {"HerbaceousVegetation": "brushland or shrubland"}),
    ("food101", "Food101", {"apple_pie": "apple pie"}),
    ("imagenet2012", "ImageNet", {"n01440764": "tench", "n03000684": "chainsaw", "n15075141": "toilet paper"}),
    ("imagenet_sketch", "ImageNet", {"n01443537": "goldfish"}),
    ("imagenet_v2", "ImageNet", {"n01440764": "tench"}),
    ("mnist", "MNIST", {"7": "7"}),
    ("oxford_flowers102", "Flowers102", {"ball moss": "air plant", "pink-yellow dahlia?": "pink and yellow dahlia"}),
    ("oxford_iiit_pet", "OxfordPets", {"american_bulldog": "american bulldog"}),
    ("patch_camelyon", "PatchCamelyon", {"0": "lymph node", "1": "lymph node containing metastatic tumor tissue"}),
    ("resisc45", "RESISC45", {"baseball_diamond": "baseball diamond"}),
    ("sun397", "SUN397", {"/a/abbey": "abbey", "/a/apartment_building/outdoor": "apartment building outdoor"}),
    ("voc/2007", "PascalVOC2007", {"tvmonitor": "tvmonitor"}),
]


@pytest.mark.parametrize(("builder", "published", "some"), PUBLISHED, ids=[builder for builder, *_ in PUBLISHED])
def test_what_builders_call_the_published_classes(builder, published, some, tmp_path, capsys):
    names, expected = class_names(builder, tmp_path), published_prompts(published)
    source = SimpleNamespace(name=builder, class_names=names)
    for data in (builder, f"/data/{builder}/5.0.0"):  # by its name, and the directory in which it is prepared
        prompts = find_prompts(data, source, FLAGS)
        assert (prompts.name, prompts.templates, prompts.metric) == (published, expected.templates, expected.metric)
        assert sorted(prompts.classes) == sorted(expected.classes)
        for name, said in some.items():
            assert said in prompts.classes[names.index(name)]
    assert not capsys.readouterr().err


def test_folders_called_by_synset(tmp_path):
    """Sorted synsets are the published order."""
    names = class_names("imagenet2012", tmp_path)
    source = SimpleNamespace(name="a folder", class_names=tuple(sorted(names)))
    assert find_prompts("/data/imagenet", source, FLAGS).classes == published_prompts("ImageNet").classes


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Images of one colour each, in turn; their labels are the subclass's."""

    VERSION = tfds.core.Version("1.0.0")
    supervised = None

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3))} | self.labels()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=self.supervised
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(12)}

    def _generate_examples(self, count=0):
        rng = np.random.default_rng(count)
        for i in range(count):
            colour = tuple(COLOURS)[i % 3]
            yield i, {"image": io.BytesIO(picture(rng, colour)), **self.label(i, colour)}


def one_of(*names):
    return tfds.features.ClassLabel(names=names)


class Pets(Pictures):
    """As `oxford_iiit_pet` is: a second label, a second image, and a word on which of them are meant."""

    supervised = ("image", "label")

    def labels(self):
        mask = tfds.features.Image(shape=(None, None, 3))
        return {"species": one_of("cat", "dog"), "mask": mask, "label": one_of("blue", "red", "green")}

    def label(self, i, colour):
        mask = io.BytesIO(picture(np.random.default_rng(i), "red"))
        return {"species": "cat", "mask": mask, "label": colour}


class Voc07(Pictures):
    """As `voc/2007` is: all classes that an image shows, and without those that only difficult objects show."""

    def labels(self):
        several = tfds.features.Sequence(one_of(*COLOURS))
        return {"labels": several, "labels_no_difficult": several}

    def label(self, i, colour):
        return {"labels": list(COLOURS), "labels_no_difficult": [colour] if i else []}


class Undecided(Pictures):
    """Two labels, and no word on which is meant."""

    def labels(self):
        return {"hue": one_of(*COLOURS), "shade": one_of("dark", "light")}

    def label(self, i, colour):
        return {"hue": colour, "shade": "dark"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`prepared(Builder)`: its directory."""
    folder = str(tmp_path_factory.mktemp("tfds"))

    def prepare(cls):
        builder = cls(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        return str(builder.data_path)

    return prepare


def test_a_label_that_the_data_set_calls_its_own(prepared):
    data = prepared(Pets)
    row = zero_shot.evaluate(ColourClip(), data, "test", FLAGS)
    assert (row["accuracy"], row["pictures"], row["classes"], row["skipped"]) == (1.0, 12, 3, 0)
    assert linear_probe.evaluate(ColourClip(), data, "test", FLAGS)["accuracy"] == 1.0
    source = open_split(data, "test", FLAGS, labelled=True)
    assert isinstance(source, Tfds) and source.class_names == ("blue", "red", "green")


def test_several_classes_of_a_picture_without_the_difficult_ones(prepared):
    data = prepared(Voc07)
    row = zero_shot.evaluate(ColourClip(), data, "test", FLAGS)
    assert row["metric"] == Metric.ELEVEN_POINT_MAP.value and row["pictures"] == 12
    source = open_split(data, "test", FLAGS, labelled=True)
    labels = [source[i].labels for i in range(12)]
    assert sorted(map(len, labels)) == [0] + [1] * 11
    assert linear_probe.evaluate(ColourClip(), data, "test", FLAGS)["classes"] == 3


@pytest.mark.entry
def test_the_script_on_tfds(scripts, tiny_run, prepared, tmp_path):
    pets, undecided = prepared(Pets), prepared(Undecided)
    done = scripts(
        "evaluate", f"--model={tiny_run}", "--suite=zero_shot,linear_probe", f"--data={pets}", f"--out={tmp_path}"
    )
    assert done.code == 0, done
    for suite in ("zero_shot", "linear_probe"):
        (row,) = json.loads((tmp_path / f"{suite}.json").read_text())["results"]
        assert (row["pictures"], row["classes"]) == (12, 3) and 0 <= row["accuracy"] <= 1
    arguments = ["evaluate", f"--model={tiny_run}", "--suite=zero_shot", f"--data={undecided}", f"--out={tmp_path}"]
    done = scripts(*arguments)
    assert done.code == 2 and "has several labels (hue, shade): choose one with --label_field" in done.err, done
    assert scripts(*arguments, "--label_field=hue").code == 0


def test_several_labels_are_no_reason_to_skip(prepared):
    source = open_split(prepared(Undecided), "test", FLAGS, labelled=True)
    with pytest.raises(UserError, match="choose one with --label_field") as error:
        zero_shot.classification.require_labels(source)
    assert type(error.value) is UserError
