"""TensorFlow Datasets, prepared as ArrayRecord or TFRecord, read in any order and without TensorFlow."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dalle_jax import storage
from dalle_jax.data.captions import captions_from_mapping
from dalle_jax.data.records import BadReason, BadSample, Record, Source
from dalle_jax.errors import UserError, closest

_USUAL = ("labels_no_difficult",)
"""Taken of several labels or images, after what the data set itself says is its image and its label.

Of VOC 2007's two lists, `labels` and this one, the evaluation of its devkit reads neither: an object that is marked as
difficult makes an image neither a right nor a wrong answer for its class. CLIP's paper (Radford et al. 2021, App. A)
says 11-point mAP and no more. This list has the devkit's right answers; an image that shows a class in difficult
objects alone counts as one without it."""


class Tfds(Source):
    """One split of a data set. Images stay encoded; captions and labels are found by the features' types.

    Where several could be the image or the label, it is the one that the data set says (`supervised_keys`), or
    `_USUAL`.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        *,
        caption_field: str = "",
        image_field: str = "",
        label_field: str = "",
    ):
        """Opens the split of a prepared builder.

        Raises:
          UserError: where the data set is not prepared, or has no such split or field.
        """
        info = builder.info
        self.name = f"tfds {info.full_name} {split}"
        self._split = split
        if not builder.is_prepared():
            config = builder.builder_config
            name = f"{builder.name}/{config.name}" if config is not None else builder.name
            raise UserError(
                f"the TFDS data set '{name}' is not prepared in {builder.data_path}: run python -c \"import "
                f"tensorflow_datasets as tfds; tfds.builder('{name}', file_format='array_record')"
                '.download_and_prepare()" (many data sets need the extra for that: pip install ".[tfds]" in the clone)'
            )
        base = split.split("[")[0]
        if base not in info.splits:
            raise UserError(
                f"{info.full_name} has no split '{base}'{closest(base, info.splits)} (it has: {', '.join(info.splits)})"
            )
        features: dict[str, Any] = dict(info.features.items())
        usual = (*(info.supervised_keys or ()), *_USUAL)
        images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        labels = [name for name, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        labels = labels or [name for name, feature in features.items() if _is_label_list(feature)]
        self._image = _field("image_field", image_field, images, features, usual)
        if self._image is None:
            raise UserError(
                f"{info.full_name} has {len(images)} images a sample ({', '.join(images)}): choose "
                "one with config.data.image_field"
            )
        self._label = _field("label_field", label_field, labels, features, usual)
        self.label_choices = tuple(sorted(labels)) if self._label is None else ()  # a directory's come in any order
        """Fields of which a person must name one before the data set has labels."""
        self._caption = _field("caption_field", caption_field, [], features) or ""
        self._features = info.features
        self._decoders = {self._image: tfds.decode.SkipDecoding()}
        self._records = _records(builder, split)
        self.has_labels = self._label is not None and not _is_label_list(features[self._label])
        if self._label is not None:
            self.class_names = _class_names(features[self._label])

    def __len__(self) -> int:
        return len(self._records)

    def key(self, index: int) -> str:
        return f"{self._split}/{index}"

    def __getitem__(self, index: int) -> Record:
        try:
            data = self._records[index]
        except OSError as error:
            raise BadSample(BadReason.MISSING, str(error)) from error
        except (RuntimeError, IndexError, ValueError) as error:  # of ArrayRecord, for damaged blocks
            raise BadSample(BadReason.TRUNCATED, f"{self.key(index)}: {error}") from error
        try:
            example = self._features.deserialize_example_np(data, decoders=self._decoders)
        except Exception as error:  # of many types: nobody has looked at a TFRecord's checksum
            raise BadSample(BadReason.TRUNCATED, f"{self.key(index)}: {error}") from error
        image = example.get(self._image)
        if not isinstance(image, bytes):  # damage to a field's name: the record holds the rest
            raise BadSample(BadReason.TRUNCATED, f"{self.key(index)}: no image under '{self._image}'")
        texts, fault = captions_from_mapping(example, self._caption)
        one, several = self._labels(index, example.get(self._label))
        return Record(image, texts, self.key(index), one, several, fault)

    def _labels(self, index: int, value: Any) -> tuple[int | None, tuple[int, ...] | None]:
        """The label of a record, or all of its labels; TFDS writes -1 where a label is not known.

        Raises:
          BadSample: the record does not hold them, or they are of no class.
        """
        if self._label is None:
            return None, None
        found = [] if value is None else np.unique(value).tolist()
        unknown = self.class_names and not all(-1 <= label < len(self.class_names) for label in found)
        if unknown or (self.has_labels and len(found) != 1):
            raise BadSample(BadReason.TRUNCATED, f"{self.key(index)}: no class under '{self._label}' ({value})")
        return (found[0], None) if self.has_labels else (None, tuple(found))


def _is_label_list(feature: Any) -> bool:
    """Whether a feature holds all classes of an image."""
    return isinstance(feature, tfds.features.Sequence) and isinstance(feature.feature, tfds.features.ClassLabel)


def _class_names(feature: Any) -> tuple[str, ...]:
    names = getattr(feature.feature if _is_label_list(feature) else feature, "names", None)
    return tuple(names or ())


def open_builder(path: str) -> tfds.core.DatasetBuilder:
    """The builder of a data set's name (`coco_captions`, `mnist:3.0.1`, `eurosat/rgb`) or of a prepared directory.

    Raises:
      UserError: where there is no such data set.
    """
    if not path:
        raise UserError("config.data.path is empty: give the name or the directory of a TFDS data set")
    try:
        if storage.is_remote(path) or os.path.isdir(storage.expanduser(path)):
            return tfds.builder_from_directory(storage.expanduser(path))
        return tfds.builder(path)
    except tfds.core.registered.DatasetNotFoundError:
        near = closest(path, tfds.list_builders(with_community_datasets=False))
        raise UserError(f"there is no directory and no TFDS data set '{path}'{near}") from None
    except (ValueError, AssertionError) as error:  # TFDS's, for a config and for a version that are not there
        configs = tfds.builder_cls(path.partition("/")[0].partition(":")[0]).builder_configs
        near = closest(path.partition("/")[2], configs)
        raise UserError(
            f"there is no directory '{path}', and the TFDS data set has no such config or version{near} "
            f"(configs: {', '.join(configs) or 'none'})"
        ) from error
    except ModuleNotFoundError as error:
        raise UserError(
            f"the code of the TFDS data set '{path}' needs {error.name}: pip install "
            '".[tfds]" in the clone, or name the directory of the prepared data set, which does not'
        ) from error
    except tfds.core.dataset_info.DatasetInfoFileError:
        raise UserError(
            f"{path} holds no prepared TFDS data set: name the directory with dataset_info.json in it, "
            "such as .../coco_captions/1.1.0"
        ) from None


def _field(
    option: str, chosen: str, candidates: list[str], features: dict[str, Any], usual: Sequence[Any] = ()
) -> str | None:
    """The field that was chosen, else the only candidate, or the first of the `usual` ones among several."""
    if chosen and chosen not in features:
        raise UserError(
            f"the data set has no field '{chosen}'{closest(chosen, features)} (config.data.{option}; "
            f"it has: {', '.join(features)})"
        )
    found = candidates if len(candidates) == 1 else [name for name in usual if name in candidates]
    return chosen or (found[0] if found else None)


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """A random-access sequence of serialised examples."""
    formats = builder.info.available_file_formats()
    if tfds.core.FileFormat.ARRAY_RECORD in formats:
        return builder.as_data_source(
            split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format=tfds.core.FileFormat.ARRAY_RECORD,
        )
    if builder.info.file_format is tfds.core.FileFormat.TFRECORD:
        return TfRecords(builder.info.splits[split].file_instructions)
    raise UserError(
        f"{builder.info.full_name} is stored as {builder.info.file_format}: prepare it with file_format='array_record'"
    )


class TfRecords:
    """Random access to TFRecord files: their framing is scanned once into offsets, as a tar's headers are.

    A record is its length (8 bytes, little-endian), 4 bytes of checksum, the data, and 4 bytes of checksum.
    """

    def __init__(self, instructions: list[Any]):
        """Args: instructions: TFDS file instructions (`filename`, `skip`, `take`)."""
        self._paths = [str(instruction.filename) for instruction in instructions]
        spans, files = [], []
        for index, instruction in enumerate(instructions):
            found = _frames(self._paths[index])[instruction.skip : instruction.skip + instruction.take]
            spans.append(found)
            files.append(np.full(len(found), index))
        self._spans = np.concatenate(spans)
        self._files = np.concatenate(files)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        offset, size = self._spans[index].tolist()
        path = self._paths[self._files[index]]
        (data,) = storage.read_parts(path, [(offset, size)])
        if len(data) < size:
            raise BadSample(BadReason.MISSING, f"{path} is shorter than it was when the run started")
        return data


def _frames(path: str) -> np.ndarray:
    """int64 [records, (offset, size)] of a TFRecord file."""
    frames = []
    start = 0
    with storage.Reader(path) as file:
        while start < file.size:
            size = int.from_bytes(file.pread(8, start), "little")
            if start + 16 + size > file.size:
                raise UserError(
                    f"{path} is cut short: the record at byte {start} does not end within its {file.size} "
                    "bytes; prepare the data set again"
                )
            frames.append((start + 12, size))
            start += 16 + size
    return np.array(frames, np.int64).reshape(len(frames), 2)
