"""Class names and templates of the 27 data sets of CLIP's evaluation (Radford et al. 2021, Table 9), as published."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from clip_jax.evaluation.metrics import Metric
from dalle_jax.errors import UserError, closest

_METRICS = {
    "FGVCAircraft": Metric.MEAN_PER_CLASS,
    "OxfordPets": Metric.MEAN_PER_CLASS,
    "Caltech101": Metric.MEAN_PER_CLASS,
    "Flowers102": Metric.MEAN_PER_CLASS,
    "PascalVOC2007": Metric.ELEVEN_POINT_MAP,
    "Kinetics700": Metric.TOP1_TOP5,
    "HatefulMemes": Metric.ROC_AUC,
}
"""Table 9; the others are judged by accuracy."""

_ALSO_CALLED = {
    "cars": "StanfordCars",
    "cars196": "StanfordCars",
    "dtd": "DescribableTextures",
    "fer2013": "FacialEmotionRecognition2013",
    "flowers": "Flowers102",
    "imagenet1k": "ImageNet",
    "imagenet2012": "ImageNet",
    "imagenetsketch": "ImageNet",
    "imagenetv2": "ImageNet",
    "oxfordflowers102": "Flowers102",
    "oxfordiiitpet": "OxfordPets",
    "pcam": "PatchCamelyon",
    "pets": "OxfordPets",
    "renderedsst2": "SST2",
    "voc2007": "PascalVOC2007",
    "voc2007multilabel": "PascalVOC2007",
}
"""In TFDS and CLIP_benchmark."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What makes captions of classes, in the order of the labels."""

    name: str
    classes: tuple[tuple[str, ...], ...]
    """Names of each class; few have more than one."""
    templates: tuple[str, ...]
    """With `{}` where the name goes."""
    metric: Metric = Metric.ACCURACY
    other_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """What copies of the data call a class, and its names here; no caption is made of them."""

    def in_order_of(self, names: Sequence[str]) -> "Prompts":
        """The same for labels that follow another order.

        Args:
          names: of the classes as the data call them, `other_names` among them; case, spaces and punctuation do not
            count.

        Raises:
          UserError: the names are not those of the classes.
        """
        known = {_plain(name): several for name, several in self.other_names.items()}
        known |= {_plain(name): several for several in self.classes for name in several}
        missing = [name for name in names if _plain(name) not in known]
        if missing or len(names) != len(self.classes):
            raise UserError(
                f"the data have {len(names)} classes and {self.name} has {len(self.classes)}; {len(missing)} are not "
                f"called as there{f', such as {missing[0]!r}' if missing else ''}"
            )
        return dataclasses.replace(self, classes=tuple(known[_plain(name)] for name in names))


def published_prompts(name: str) -> Prompts:
    """Prompts of a data set by its name; case and punctuation do not count.

    Raises:
      UserError: there are none.
    """
    found = find_published(name)
    if found is None:
        raise UserError(f"there are no prompts of '{name}'{closest(name, _table())} (known: {', '.join(_table())})")
    return found


def find_published(name: str) -> Prompts | None:
    """Prompts of a data set by its name, TFDS's or CLIP_benchmark's (`wds_vtab-cifar10`); None where there are none."""
    names = {_plain(name): name for name in _table()} | _ALSO_CALLED
    plain = _plain(re.sub(r"^(wds[_-])?(vtab[-_/])?", "", name))
    return _table()[names[plain]] if plain in names else None


@functools.cache
def _table() -> dict[str, Prompts]:
    others = _read("other_names.json")
    return {
        name: _with_others(parse_prompts(name, entry), others.get(name, {}))
        for name, entry in _read("zero_shot_prompts.json").items()
    }


def _read(name: str) -> dict[str, Any]:
    return json.loads(resources.files("clip_jax").joinpath("published", name).read_text(encoding="utf-8"))


def _with_others(prompts: Prompts, others: Sequence[str] | Mapping[str, str]) -> Prompts:
    """Prompts that know what the builders of TFDS call the classes, which is also what many folders do.

    Args:
      prompts: published ones.
      others: one name a class, in their order; or those that differ, each with a name that its class has here.
    """
    by_name = {name: several for several in prompts.classes for name in several}
    if isinstance(others, Mapping):
        known = {other: by_name[name] for other, name in others.items()}
    else:
        known = dict(zip(others, prompts.classes, strict=True))
    return dataclasses.replace(prompts, other_names=known)


def parse_prompts(name: str, entry: object) -> Prompts:
    """Prompts from `{"classes": [...], "templates": [...]}`; a class is a name or a list of names.

    Raises:
      UserError: the entry is of another form.
    """
    try:
        assert isinstance(entry, dict) and entry["classes"] and entry["templates"]
        assert all(isinstance(entry[key], list | tuple) for key in ("classes", "templates"))
        classes = tuple((names,) if isinstance(names, str) else tuple(names) for names in entry["classes"])
        assert all(isinstance(name, str) for names in classes for name in names) and all(classes)
        # CLIP_benchmark writes `{c}` for the class's name.
        templates = tuple(template.replace("{c}", "{}") for template in entry["templates"])
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'the prompts of {name} must be {{"classes": [...], "templates": [...]}}') from error
    return Prompts(name, classes, templates, _METRICS.get(name, Metric.ACCURACY))


def _plain(name: str) -> str:
    """What counts of a name. SUN397's own say their first letter before it: `/a/abbey`."""
    return re.sub(r"\W|_", "", re.sub(r"^/\w/", "", name.casefold()))
