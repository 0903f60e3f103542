"""The data sets of an evaluation: where they lie, what their classes are called, which prompts go with them."""

import dataclasses
import enum
import os
import sys
from collections.abc import Sequence

from etils import epath

from clip_jax.evaluation.prompts import Prompts, find_published, parse_prompts, published_prompts
from dalle_jax import storage
from dalle_jax.config import read_json
from dalle_jax.data import paths
from dalle_jax.data.config import DataConfig, SourceKind, TarKey
from dalle_jax.data.readers.class_folder import ClassFolder
from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.readers.webdataset import WebDataset
from dalle_jax.data.records import Source
from dalle_jax.data.source_types import source_type
from dalle_jax.data.sources import EVAL, TRAIN, open_source, warn_of_left_out
from dalle_jax.errors import UserError
from dalle_jax.run_record import read_run
from dalle_jax.text_files import decode_text, split_lines
from dalle_jax.training.parallel.processes import is_primary
from launch.run.source_kind import guess_source

RUN = "run"
"""`--data=run`: what the model was trained on, and what it held out of that."""

_TEMPLATE = "a photo of a {}."
"""Where the data have class names alone."""

_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
"""What folders of splits are called."""

_CLASS_NAMES, _TEMPLATES, _TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"


class Classes(enum.Enum):
    """How labels and class names come together."""

    MATCH = "match"  # the data's names are looked up among the published ones
    INDEX = "index"  # label i is the i-th published name
    DATA = "data"  # the data's own names


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """What is said of all data sets of an evaluation."""

    model: str
    prompts: str = ""
    classes: Classes = Classes.MATCH
    caption_field: str = ""
    image_field: str = ""
    label_field: str = ""
    key: TarKey = TarKey.FIRST_DOT


def open_split(data: str, split: str, flags: DataFlags, *, labelled: bool) -> Source:
    """Opens one split.

    Args:
      data: a folder of CLIP_benchmark's layout, a folder by class, tars, a TFDS name or directory, or `run`; `{split}`
        in a path stands for the split.
      split: its name.
      flags: fields to read.
      labelled: whether a folder's folders are classes.

    Raises:
      UserError: where there are no such data.
    """
    if data == RUN:
        return open_source(read_run(flags.model).data, TRAIN if split == TRAIN else EVAL, as_begun=True)
    path = data.replace("{split}", split)
    if is_benchmark(path):
        source = WebDataset(_shards(storage.join(path, split)), caption_field=flags.caption_field, key=flags.key)
        warn_of_left_out(source)
        return source
    if guess_source(path) is SourceKind.FOLDER and storage.as_path(path).is_dir():
        path = _split_folder(path, split, labelled)
        if labelled:
            return ClassFolder(path)
    kind = guess_source(path)
    # What is said of all data sets may be of use to some of them alone.
    fields = [name for name in ("caption_field", "image_field", "label_field") if name not in source_type(kind).unused]
    shared = {name: getattr(flags, name) for name in fields}
    config = DataConfig(
        source=kind,
        path="" if kind is SourceKind.SHAPES else path,
        split=split if source_type(kind).named_splits else TRAIN,  # of others it stood in the path, if anywhere
        eval_fraction=0.0,
        key=flags.key if kind is SourceKind.WEBDATASET else TarKey.FIRST_DOT,
        **shared,
    )
    if kind is SourceKind.FOLDER and Folder(path, **shared).split_names:
        config = dataclasses.replace(config, split=split)
    return open_source(config, as_begun=True)  # the options are of all the data sets


def _split_folder(path: str, split: str, labelled: bool) -> str:
    """The split's folder, or the folder itself where the splits have none of their own."""
    if (epath.Path(path) / split).is_dir():
        return storage.join(path, split)
    others = [inner for inner in epath.Path(path).iterdir() if inner.name in _SPLITS and inner.is_dir()]
    if labelled:  # there may be a class of this name: a train is a vehicle
        others = [inner for inner in others if any(below.is_dir() for below in inner.iterdir())]
    if others:
        there = ", ".join(sorted(inner.name for inner in others))
        raise UserError(f"{path} has no split '{split}' (it has {there}): name one of them, with --split=NAME say")
    return path


def find_prompts(data: str, source: Source, flags: DataFlags, *, templates: bool = True) -> Prompts:
    """Class names in the order of the labels, and templates.

    In this order: those that are named, those that lie beside the data, the published ones of a data set of this name
    if its classes are those of the data, the data's class names in `a photo of a {}.`.

    Args:
      data: as in `open_split`.
      source: what it opened.
      flags: named prompts, and how classes come together.
      templates: whether they are needed, so that they must lie beside the data where class names do.

    Raises:
      UserError: there are none, or the classes of those that are named are not those of the data.
    """
    if not flags.prompts and is_benchmark(data):
        return _stored(data, templates)
    prompts = named_prompts(flags.prompts) if flags.prompts else _guess(data, flags)
    names = source.class_names or _stored_names(data)
    own = Prompts(data, tuple((name.replace("_", " "),) for name in names), (_TEMPLATE,))
    if prompts is None and not own.classes:
        raise UserError(f"{source.name} does not name its classes: say whose they are with --prompts=NAME")
    if prompts is None:
        return own
    if flags.classes is Classes.DATA and own.classes:
        return dataclasses.replace(prompts, classes=own.classes)
    if flags.classes is Classes.MATCH and own.classes:
        return _matched(prompts, source.name, names, own if not flags.prompts else None)
    count = len(source.class_names)
    if count and count != len(prompts.classes):  # label i would be another class than the i-th
        raise UserError(
            f"{source.name} has {count} classes and {prompts.name} has {len(prompts.classes)}: --classes=index counts "
            "both from the first, and is for data with all of them; leave it out to go by names"
        )
    return prompts


def _matched(prompts: Prompts, name: str, classes: Sequence[str], own: Prompts | None) -> Prompts:
    """Prompts in the order of the data's labels, or the data's own where the prompts were only guessed."""
    try:
        return prompts.in_order_of(classes)
    except UserError as error:
        if own is None:
            raise UserError(
                f"{error}: with --classes=index label i is the i-th published name, with --classes=data the data's own "
                "names are used"
            ) from error
        if is_primary():
            print(
                f"note: {name} is not taken for {prompts.name}, and its own class names are used: {error}",
                file=sys.stderr,
                flush=True,
            )
        return own


def is_benchmark(path: str) -> bool:
    """Whether a folder has CLIP_benchmark's layout: `SPLIT/0.tar` and on, with the names of the classes beside them."""
    return not {_CLASS_NAMES, _TEMPLATES, _TYPE}.isdisjoint(storage.files_in(path))


def _shards(folder: str) -> list[str]:
    """The tars of a split: as many as `nshards.txt` says, or all that are there."""
    count = epath.Path(folder) / "nshards.txt"
    if not count.exists():
        return paths.expand(folder, ".tar")
    text = "".join(_lines(count))
    if not text.isdigit() or not int(text):
        raise UserError(f"{count} must hold the number of tars, not '{text[:20]}'")
    return paths.expand(",".join(storage.join(folder, f"{i}.tar") for i in range(int(text))), ".tar")


def _stored_names(folder: str) -> tuple[str, ...]:
    """Class names that lie beside the data in CLIP_benchmark's layout; none elsewhere."""
    return tuple(_lines(epath.Path(folder) / _CLASS_NAMES)) if _CLASS_NAMES in storage.files_in(folder) else ()


def _stored(folder: str, with_templates: bool) -> Prompts:
    """Prompts as CLIP_benchmark keeps them, a line each."""
    classes, templates = _lines(epath.Path(folder) / _CLASS_NAMES), [_TEMPLATE]
    if with_templates:
        templates = [line for line in _lines(epath.Path(folder) / _TEMPLATES) if line]
    name = os.path.basename(os.path.normpath(folder))
    published = find_published(name)
    prompts = parse_prompts(name, {"classes": classes, "templates": templates})
    return prompts if published is None else dataclasses.replace(prompts, metric=published.metric)


def _lines(path: epath.Path) -> list[str]:
    """The lines of a file up to the last that is not blank. Line i names class i, a blank one too."""
    try:
        text = decode_text(path.read_bytes()).rstrip()
        return [line.strip() for line in split_lines(text)] if text else []
    except FileNotFoundError:
        raise UserError(f"{path} is missing: classification needs it, or --prompts=NAME") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): write it as UTF-8") from error


def named_prompts(name: str) -> Prompts:
    """Published ones, or those of a JSON file."""
    return parse_prompts(name, read_json(name)) if name.endswith(".json") else published_prompts(name)


def _guess(data: str, flags: DataFlags) -> Prompts | None:
    """The published prompts of a data set that is called as a part of the path is, or two parts in turn."""
    path = read_run(flags.model).data.path if data == RUN else data
    parts = path.rpartition("://")[2].split(":")[0].split("/")
    # Two in turn where one says nothing: TFDS calls VOC 2007 `voc/2007`.
    names = [name for i in reversed(range(len(parts))) for name in (parts[i], "/".join(parts[max(i - 1, 0) : i + 1]))]
    return next((found for name in names if (found := find_published(name))), None)
