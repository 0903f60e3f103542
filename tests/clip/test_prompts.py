"""The 27 published sets of class names and templates, and how names of data are matched with them."""

import json

import pytest

from clip_jax.evaluation.metrics import Metric
from clip_jax.evaluation.prompts import _table, find_published, parse_prompts, published_prompts
from dalle_jax.errors import UserError

# Templates and classes of each, from the release's data/prompts.md.
COUNTS = {
    "Birdsnap": (1, 500), "CIFAR10": (18, 10), "CIFAR100": (18, 100), "CLEVRCounts": (1, 8), "Caltech101": (34, 102),
    "Country211": (5, 211), "DescribableTextures": (8, 47), "EuroSAT": (3, 10), "FGVCAircraft": (2, 100),
    "FacialEmotionRecognition2013": (6, 7), "Flowers102": (1, 102), "Food101": (1, 101), "GTSRB": (3, 43),
    "HatefulMemes": (1, 2), "ImageNet": (80, 1000), "KITTI": (1, 4), "Kinetics700": (28, 700), "MNIST": (1, 10),
    "OxfordPets": (1, 37), "PascalVOC2007": (1, 20), "PatchCamelyon": (1, 2), "RESISC45": (18, 45), "SST2": (1, 2),
    "STL10": (2, 10), "SUN397": (2, 397), "StanfordCars": (8, 196), "UCF101": (48, 101),
}  # fmt: skip


def test_all_published_sets():
    assert {name: (len(p.templates), len(p.classes)) for name, p in _table().items()} == COUNTS
    for prompts in _table().values():
        assert all(template.count("{}") == 1 for template in prompts.templates)
        assert all(name for names in prompts.classes for name in names)


def test_some_of_them_read():
    assert published_prompts("cifar-10").classes[:2] == (("airplane",), ("automobile",))
    faces = published_prompts("FER2013")
    assert faces.classes[5] == ("surprised", "shocked", "spooked")
    metrics = {name: p.metric for name, p in _table().items() if p.metric is not Metric.ACCURACY}
    assert metrics.pop("Kinetics700") is Metric.TOP1_TOP5 and metrics.pop("HatefulMemes") is Metric.ROC_AUC
    assert metrics.pop("PascalVOC2007") is Metric.ELEVEN_POINT_MAP
    assert set(metrics) == {"FGVCAircraft", "OxfordPets", "Caltech101", "Flowers102"}
    assert set(metrics.values()) == {Metric.MEAN_PER_CLASS}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("wds_vtab-cifar10", "CIFAR10"),
        ("wds_cifar10", "CIFAR10"),
        ("vtab/pets", "OxfordPets"),
        ("oxford_iiit_pet", "OxfordPets"),
        ("imagenet2012", "ImageNet"),
        ("wds_imagenetv2", "ImageNet"),
        ("train-*.tar", None),
        ("", None),
    ],
)
def test_names_of_data_sets(name, found):
    prompts = find_published(name)
    assert (prompts and prompts.name) == found


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="no prompts of 'CIFAR', did you mean 'CIFAR10'.*known: Birdsnap"):
        published_prompts("CIFAR")


def test_classes_in_the_order_of_the_data():
    prompts = parse_prompts("x", {"classes": ["Big cat", ["dog", "hound"], "o'clock"], "templates": ["a {c}."]})
    assert prompts.templates == ("a {}.",)
    ordered = prompts.in_order_of(["Hound", "oclock", "big_cat"])
    assert ordered.classes == (("dog", "hound"), ("o'clock",), ("Big cat",))
    with pytest.raises(UserError, match="the data have 3 classes and x has 3; 1 are not .* such as 'n02123045'"):
        prompts.in_order_of(["n02123045", "oclock", "dog"])
    with pytest.raises(UserError, match="the data have 2 classes and x has 3; 0 are not called as there"):
        prompts.in_order_of(["oclock", "dog"])


@pytest.mark.parametrize("entry", [[], {}, {"classes": ["a"]}, {"classes": [1], "templates": ["{}"]}, {"classes": "a"}])
def test_prompts_of_another_form(entry):
    with pytest.raises(UserError, match='prompts of mine.json must be {"classes"'):
        parse_prompts("mine.json", json.loads(json.dumps(entry)))
