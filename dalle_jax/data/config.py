"""Which data a run reads, and how its captions become tokens."""

import dataclasses
import enum
import math

from dalle_jax.config import check_at_least, check_share

MAX_PIXELS = 178_956_970
"""Pillow opens no image of more, whatever is asked for: its guard is one for the whole process, and stays."""


class SourceKind(enum.StrEnum):
    """Where images and captions come from: the names in `dalle_jax.data.source_types.SOURCES` from the start."""

    SHAPES = "shapes"  # drawn scenes, built on first use
    WEBDATASET = "webdataset"  # tars as img2dataset writes them
    FOLDER = "folder"  # images beside same-named .txt files, or with tables: COCO's, Flickr's, Hugging Face's, your own
    PARQUET = "parquet"  # Parquet files with the bytes of the images in them, as Hugging Face stores data sets
    TFDS = "tfds"  # any TensorFlow Datasets name or directory
    ENCODED = "encoded"  # tokens and captions, written by `launch.encode`


class TarKey(enum.Enum):
    """Up to where the name of a tar's member is its sample's key."""

    FIRST_DOT = "first_dot"  # webdataset's convention: what follows the first dot of the base name is the extension
    STEM = "stem"  # up to the last dot, for names such as `2020.01.17.jpg`


class HeldOutBy(enum.Enum):
    """What decides, in tars, which samples `eval_fraction` holds out."""

    TAR_AND_KEY = "tar_and_key"  # a hash of the tar's name and the sample's key, which may come again in other tars
    KEY = "key"  # of the key alone: samples may move from tar to tar, and keys must differ


class Augment(enum.Enum):
    """How an image becomes a square of `image_size`; `dalle_jax.data.images.transforms` has one function for each."""

    NONE = "none"  # DALL·E's inference preprocessing: short side resized with Lanczos, centre crop
    DVAE = "dvae"  # DALL·E Listing 1: random square, random scale, random crop, mirrored half of the time
    DALLE = "dalle"  # DALL·E Listing 2: near-central square, slight random scale and crop, never mirrored
    CLIP = "clip"  # short side resized, random crop
    CROP_AND_MIRROR = (
        "crop_and_mirror"  # for small images: a random crop of the padded image, mirrored half of the time
    )
    CLIP_INFERENCE = "clip_inference"  # CLIP's inference preprocessing: short side resized with bicubic, centre crop
    SQUARE = "square"  # SigLIP's, in training and at inference: the whole image squeezed into the square with bicubic
    LETTERBOX = "letterbox"  # the whole image, its long side resized, and bars of one colour where it leaves room

    @property
    def held_out(self) -> "Augment":
        """What the held-out images of a model trained under this get: its inference preprocessing."""
        if self in (Augment.SQUARE, Augment.LETTERBOX):
            return self
        of_clip = (Augment.CLIP, Augment.CLIP_INFERENCE, Augment.CROP_AND_MIRROR)
        return Augment.CLIP_INFERENCE if self in of_clip else Augment.NONE


class Resample(enum.Enum):
    """The filter that an image is resized with, as Pillow has it."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


@dataclasses.dataclass(frozen=True)
class Resizing:
    """What CLIP's ways to a square (`clip`, `crop_and_mirror`, `clip_inference`, `square`, `letterbox`) leave open."""

    resample: Resample = Resample.BICUBIC
    fill: int = 0
    """Of the bars of `letterbox`, 0 (black) to 255 in all three channels."""

    def __post_init__(self):
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill is a level from 0 to 255, not {self.fill}")


BICUBIC = Resizing()
"""CLIP's own, where nothing else is said."""


@dataclasses.dataclass(frozen=True)
class ShapesConfig:
    """The embedded data set of drawn scenes."""

    data_dir: str = ""
    """Where it is built and kept; empty: the user's cache folder."""
    num_train: int = 20_000
    num_eval: int = 1_000
    """Scenes of the splits `eval` and `unseen`, each."""
    image_size: int = 64
    """Pixels a side of the drawings, 64 or more."""
    max_objects: int = 1
    """1, or 2 for scenes of one and two objects."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A data set and how it is split."""

    source: str = SourceKind.SHAPES.value
    """A name of `dalle_jax.data.source_types.SOURCES`."""
    path: str = ""
    """webdataset: glob or brace range of tars (`data/{00000..00099}.tar`, `data/*.tar`), several separated by commas;
    parquet: the same of Parquet files; folder: the folder, or a table in it; tfds: a name (`coco_captions`) or a
    prepared directory; encoded: the folder that `launch.encode` wrote. `{split}` in it stands for the split's name."""
    split: str = "train"
    """The split that is trained on: of a TFDS data set, of a folder whose tables or lists name splits (`all`: all of
    them as one), or what replaces `{split}` in `path`."""
    eval_split: str = ""
    """The split that is held out; empty: the one that a folder names for validation or tests, else `eval_fraction` of
    `split`, chosen by a hash of each sample's key."""
    eval_fraction: float = 0.02
    held_out_by: HeldOutBy = HeldOutBy.TAR_AND_KEY
    """Of tars. A run that was begun before there was a choice goes on by the key alone."""
    key: TarKey = TarKey.FIRST_DOT
    """Of tars: which members are one sample, those with the same name up to the first dot or to the last."""
    caption_field: str = ""
    """Of a .json member, a table, Parquet files or a TFDS data set; empty: `caption`, `captions` or `text`, and in a
    table `comment`."""
    caption_templates: tuple[str, ...] = ()
    """Captions for images that have a label and no caption, with `{}` where the class's name goes. TFDS and Parquet
    name their classes; in a folder, each folder is one."""
    image_field: str = ""
    """Of a table, Parquet files or a TFDS data set; empty: the usual names, or the image that a data set calls its
    own, or the only one there is."""
    label_field: str = ""
    """Of a TFDS data set or Parquet files; empty: what the data set calls its label, the only class label there is, or
    `label`."""
    shapes: ShapesConfig = ShapesConfig()

    def __post_init__(self):
        if not 0.0 <= self.eval_fraction <= 1.0:
            raise ValueError(f"eval_fraction must be between 0 and 1, not {self.eval_fraction}")
        if self.key is not TarKey.FIRST_DOT and self.source != SourceKind.WEBDATASET:
            raise ValueError(f"key='{self.key.value}' is for tars, and source is '{self.source}'")


@dataclasses.dataclass(frozen=True)
class MixturePart(SourceConfig):
    """One of several data sets that a run reads."""

    name: str = ""
    """For the metrics; required."""
    weight: float = 1.0
    """Its share of the samples is this over the sum of all weights, whatever its size."""

    def __post_init__(self):
        super().__post_init__()
        if not self.name:
            raise ValueError("each part of a mixture needs a name")
        if not (self.weight > 0.0 and math.isfinite(self.weight)):
            raise ValueError(f"the weight of '{self.name}' must be above 0 and finite, not {self.weight}")


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """A data set or a mixture of several, and the limits on what is read."""

    mixture: tuple[MixturePart, ...] = ()
    """Several data sets in the place of the one that `source`, `path` and the other keys of `SourceConfig` name."""
    image_size: int = 256
    """Pixels a side of what the model sees."""
    max_bad_fraction: float = 0.01
    """The run stops when more of the samples than this cannot be read."""
    max_pixels: int = 1 << 26
    """Larger images count as bad: a small file may unpack to more than the memory holds."""
    workers: int = 0
    """Processes that decode images; 0: threads of the training process."""
    prefetch: int = 2
    """Batches that wait on the device."""

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction must be between 0 and 1, not {self.max_bad_fraction}")
        check_at_least(1, self, "image_size", "max_pixels", "prefetch")
        check_at_least(0, self, "workers")
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(
                f"max_pixels must be at most {MAX_PIXELS:,}, not {self.max_pixels:,}: Pillow reads no more"
            )
        names = [part.name for part in self.mixture]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two parts of the mixture are called '{name}': give each a name of its own")
        if names and self.path:
            raise ValueError(f"a mixture of {', '.join(names)} and path='{self.path}': name the data in one place")


class TokenizerKind(enum.Enum):
    """Whose tokenizer reads the captions."""

    TRAINED = "trained"  # byte-pair encoding by SentencePiece, trained here: at `path`, or on the run's own captions
    PUBLISHED = "published"  # a published CLIP's: the files at `path`, or OpenAI's table


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The text tokenizer of a run and what it does to captions (DALL·E section 2.2 and App. B.1)."""

    vocab_size: int = 16_384
    text_length: int = 256
    """Positions, start-of-text among them; longer captions are cut."""
    bpe_dropout: float = 0.1
    """Probability in training that a merge is left out."""
    path: str | None = None
    """A `tokenizer.model`; of kind `published`, a folder with `tokenizer.json`, `vocab.json` and `merges.txt`, or
    `spiece.model`. None: that of the run or weights that are fine-tuned; else a new one, or OpenAI's."""
    kind: TokenizerKind = TokenizerKind.TRAINED

    def __post_init__(self):
        if self.kind is TokenizerKind.PUBLISHED and self.bpe_dropout:
            raise ValueError("bpe_dropout must be 0 where kind is 'published': its merges are never left out")
        check_share(self, "bpe_dropout")
        check_at_least(2, self, "text_length")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How `Batches` encodes a caption."""

    length: int
    """Positions, start-of-text among them."""
    end: bool = False
    """Whether an end-of-text token closes each caption (CLIP's do, the decoder's do not)."""
    dropout: float = 0.0
    """BPE dropout: of training batches only, a function of (seed, sample)."""
