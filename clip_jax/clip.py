"""A trained CLIP in the hand: images and captions in, features, scores and probabilities out."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array, Float, Int, Int32

from clip_jax.config import ClipConfig
from clip_jax.evaluation.zero_shot import (
    ClassNames,
    Templates,
    class_captions,
    class_probabilities,
    mean_directions,
    sigmoid,
    unit,
)
from clip_jax.losses.base import normalize
from clip_jax.model import ClipModel
from clip_jax.preprocessing.images import preprocess, preprocess_on_device
from clip_jax.tokenizers.published import CaptionTokenizer
from clip_jax.tokenizers.token_checks import checked_rows
from clip_jax.towers.text import feature_positions
from clip_jax.towers.vit import normalize_pixels
from dalle_jax.data.captions import caption_list
from dalle_jax.data.images.arrays import ImageLike, image_list
from dalle_jax.errors import UserError

Images = jax.Array | np.ndarray | Iterable[ImageLike]
"""uint8 [B, height, width, 3], on a device or on the host, or a list of such arrays, Pillow images and paths."""

Texts = Iterable[str] | Any
"""Captions; anything else is refused by a line that says what it is."""

Tokenize = Callable[[Sequence[str]], Int[np.ndarray, "n T"]]
"""Captions to ids of `context_length` positions, each with the end-of-text token in it."""

K = TypeVar("K")

_TEXT_STEP = 8  # Captions are cut to multiples of this many positions: so few lengths are so few programs.


class Clip:
    """Both towers of a trained CLIP. Use `clip_jax.load` for one from a work directory.

    Results live where the images live: NumPy arrays and lists give NumPy arrays, and images on a device (or spread
    over a mesh) give arrays on it, without a transfer to the host. On the host, images and captions of any number
    run in batches padded to a few sizes, so that few programs are compiled, and are spread over all devices of this
    process where there are enough of them; on a device, one program for each shape.
    """

    def __init__(
        self, config: ClipConfig, params: Any, tokenize: Tokenize, *, batch_size: int = 64, model_state: Any = None
    ):
        """Args:
        config: of the model.
        params: its parameters, unboxed.
        tokenize: captions to ids.
        batch_size: the most images or captions that run at once on a device.
        model_state: its other variables: the `batch_stats` of a ResNet.
        """
        self.config, self.batch_size = config, batch_size
        self.logit_scale = float(np.exp(np.asarray(params["logit_scale"], np.float32)))
        """Factor on cosines."""
        self.logit_bias = float(np.asarray(params["logit_bias"])) if config.objective.has_bias else 0.0
        """Added to scaled cosines; 0 where the loss was a softmax, which takes no notice of it."""
        self.tokenize = tokenize
        self._variables = {"params": params, **(model_state or {})}
        self._placed: dict[Sharding, Any] = {}
        # Plain dicts: a cache that knows this object would keep its weights on the device after the last use.
        self._text_features_of: dict[str, np.ndarray] = {}
        self._directions: dict[Any, np.ndarray] = {}
        model = ClipModel(config)

        @functools.partial(jax.jit, static_argnames="method")
        def image_features(variables, images, method):
            vision = config.vision
            squares = preprocess_on_device(images, vision.image_size, vision.preprocessing, vision.resizing)
            return model.apply(variables, normalize_pixels(squares, vision), method=method)

        @jax.jit
        def text_features(variables, ids):
            return model.apply(variables, ids, method="encode_text")

        self._image_features, self._text_features = image_features, text_features

    @property
    def variables(self) -> Any:
        """All that the model was given to hold, as `ClipModel.apply` takes it."""
        return self._variables

    def encode_image(self, images: Images) -> Float[Array, "B E"] | Float[np.ndarray, "B E"]:
        """Features of images of any size (resized and cropped as in evaluation), projected, not normalised."""
        return self._encode_images(images, "encode_image")

    def probe_features(self, images: Images) -> Float[Array, "B D"] | Float[np.ndarray, "B D"]:
        """Features before the projection, which linear probes read (Radford et al. 2021, App. A.3).

        Of a ResNet, whose attention pool ends with the projection, they are what the pool projects: 32 times as wide as
        the stem. The paper does not say which features of its ResNets it probed.
        """
        return self._encode_images(images, "image_trunk")

    def _encode_images(self, images: Images, method: str) -> jax.Array | np.ndarray:
        program = functools.partial(self._image_features, method=method)
        if isinstance(images, jax.Array):
            _refuse_tracer(images)
            if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[-1] != 3:
                raise UserError(f"images on a device are uint8 [B, height, width, 3], not {images.aval.str_short()}")
            images = _on_auto_mesh(images)
            return program(self._variables_on(images.sharding), images)
        listed, vision = image_list(images), self.config.vision
        size, how = vision.image_size, (vision.preprocessing, vision.resizing)
        if not listed:
            one = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
            return np.zeros((0, *jax.eval_shape(program, self._variables, one).shape[1:]), np.float32)
        features: list[np.ndarray] = []
        started: list[tuple[jax.Array, int]] = []
        for part in _parts(len(listed), self._most_at_once):
            started.append(self._start(program, preprocess(listed[part], size, *how, first=part.start)))
            if len(started) > 2:  # two are enough to keep the device busy, and all would have to fit on it
                features.append(_fetch(*started.pop(0)))
        return np.concatenate([*features, *(_fetch(*part) for part in started)])

    def encode_text(self, texts: Texts, *, truncate: bool | None = None) -> Float[np.ndarray, "B E"]:
        """Features of captions, projected, not normalised.

        Captions of similar length run together, cut where all of them have ended: a causal tower need not compute what
        follows the end token. SigLIP's reads pads too, and always runs on whole rows.

        Args:
          texts: captions.
          truncate: cut those that are longer than the model reads; None: as was said to `load`, which refuses them.

        Raises:
          UserError: a caption is too long, and the message names it; or the tokenizer is the caller's own, which
            takes no `truncate`, or gives rows that the model cannot read.
        """
        if isinstance(texts, str):
            raise UserError(f"encode_text takes a list of captions, not the one string '{texts[:40]}'")
        texts = caption_list(texts)
        if not texts:
            return np.zeros((0, self.config.embed_dim), np.float32)
        ids = self._ids(texts, truncate)
        if self.config.text.tower.reads_pads:
            lengths = np.full(len(ids), ids.shape[1])
        else:
            lengths = feature_positions(ids, self.config.text) + 1
        order = np.argsort(lengths, kind="stable")
        parts = []
        for part in _parts(len(order), self._most_at_once):
            rows = order[part]
            length = min(-(-lengths[rows].max() // _TEXT_STEP) * _TEXT_STEP, ids.shape[1])
            parts.append(self._start(self._text_features, ids[rows, :length]))
        return np.concatenate([_fetch(*part) for part in parts])[np.argsort(order)]

    def _ids(self, texts: Sequence[str], truncate: bool | None) -> Int32[np.ndarray, "n T"]:
        if truncate is None:
            rows = self.tokenize(texts)
        elif isinstance(self.tokenize, CaptionTokenizer):
            rows = self.tokenize(texts, truncate=truncate)
        else:
            raise UserError("truncate is for tokenizers of clip_jax: this model's cuts or refuses captions by itself")
        return checked_rows(rows, texts, self.config.text)

    def score(self, images: Images, text: str | Texts) -> Float[Array, " B"] | Float[np.ndarray, " B"]:
        """How well images fit captions: cosine times the learned scale, plus SigLIP's bias, float32.

        Args:
          images: images of any size.
          text: one caption for all of them, or one for each.
        """
        texts = [text] if isinstance(text, str) else caption_list(text)
        images = images if isinstance(images, jax.Array) else image_list(images)
        if len(texts) not in (1, len(images)):
            raise UserError(f"{len(images)} images and {len(texts)} captions: give one caption, or one an image")
        # A prompt is asked for again and again while its candidates are ranked; captions of data are not.
        captions = self._text_feature(texts[0])[None] if len(texts) == 1 else self.encode_text(texts)
        features = self.encode_image(images)
        if isinstance(features, jax.Array):
            return _scores(features, captions, self.logit_scale, self.logit_bias)
        cosines = np.sum(unit(features) * unit(captions), axis=-1)
        return np.float32(self.logit_scale) * cosines + np.float32(self.logit_bias)

    def pair_probability(self, images: Images, text: str | Texts) -> Float[Array, " B"] | Float[np.ndarray, " B"]:
        """How likely each image and caption belong together, by themselves: the sigmoid of `score`, float32.

        Raises:
          UserError: the model was trained with a softmax, whose scores mean something beside other scores alone.
        """
        if not self.config.objective.scores_pairs:
            raise UserError(
                f"a model trained with the {self.config.loss} loss has no probability of a pair: compare its `score`s"
            )
        score = self.score(images, text)
        return jax.nn.sigmoid(score) if isinstance(score, jax.Array) else sigmoid(score)

    def zero_shot(
        self, images: Images, class_names: ClassNames, templates: Templates = ("a photo of a {}.",)
    ) -> Float[np.ndarray, "B classes"]:
        """Probabilities of classes: prompts ensembled in embedding space, softmax of scaled cosines.

        That one class is right is assumed, of SigLIP too, whose bias falls out; `pair_probability` assumes nothing.

        Args:
          images: images of any size.
          class_names: what fills the templates, in the order of the result; a class may have several names.
          templates: captions with `{}` where the name goes, or functions that make a caption of a name.

        Raises:
          UserError: a name is not a string, or a template has no place for it.
        """
        directions = self.class_directions(class_names, templates)
        return class_probabilities(np.asarray(self.encode_image(images)), directions, self.logit_scale)

    def class_directions(
        self, class_names: ClassNames, templates: Templates = ("a photo of a {}.",)
    ) -> Float[np.ndarray, "classes E"]:
        """The zero-shot classifier's unit vectors, computed once for the last few questions asked."""
        captions = class_captions(class_names, templates)
        return _remember(self._directions, captions, 8, lambda: mean_directions(self.encode_text, captions)).copy()

    def _text_feature(self, text: str) -> Float[np.ndarray, " E"]:
        return _remember(self._text_features_of, text, 1024, lambda: self.encode_text([text])[0])

    def _variables_on(self, sharding: Sharding) -> Any:
        """The variables on the devices of a sharding, a full copy on each, placed there once."""
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        if sharding not in self._placed:
            with jax.ensure_compile_time_eval():  # inside a caller's jit as well: what is kept must outlive it
                self._placed[sharding] = jax.device_put(self._variables, sharding)
        return self._placed[sharding]

    @property
    def _most_at_once(self) -> int:
        return self.batch_size * len(jax.local_devices())

    def _start(self, program: Callable[[Any, jax.Array], jax.Array], rows: np.ndarray) -> tuple[jax.Array, int]:
        """Starts a program on up to `_most_at_once` rows; returns what it will give, pads included, and their number.

        A few rows run on one device: less than two on each of all of them may differ in rounding, see `_pad`.
        """
        devices = jax.local_devices()
        if len(rows) < 2 * len(devices) and len(rows) <= self.batch_size:
            devices = devices[:1]
        sharding: Sharding = SingleDeviceSharding(devices[0])
        if len(devices) > 1:
            sharding = NamedSharding(Mesh(np.asarray(devices), ("data",)), PartitionSpec("data"))
        padded = _pad(rows, self.batch_size * len(devices), len(devices))
        return program(self._variables_on(sharding), jax.device_put(padded, sharding)), len(rows)


@jax.jit
def _scores(
    image: Float[Array, "B E"],
    text: Float[Array, "captions E"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> Float[Array, " B"]:
    return logit_scale * jnp.sum(normalize(image) * normalize(text), axis=-1) + logit_bias


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _fetch(rows: jax.Array, count: int) -> np.ndarray:
    return np.asarray(rows)[:count]


def _remember(cache: dict[K, np.ndarray], key: K, most: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What was made for a key, or is made now; the oldest goes where there are too many."""
    if key not in cache:
        made = make()
        if len(cache) >= most:
            cache.pop(next(iter(cache)), None)
        cache[key] = made
    return cache[key]


def _refuse_tracer(images: jax.Array) -> None:
    if isinstance(images, jax.core.Tracer):
        raise UserError(
            "a Clip places its weights by itself, outside jax.jit; inside it use "
            "clip_jax.ClipModel(clip.config).apply(clip.variables, normalised_pixels, method='encode_image')"
        )


def _on_auto_mesh(images: jax.Array) -> jax.Array:
    """The same on a mesh whose axes are left to the compiler; `jax.make_mesh` makes explicit ones, and models raise."""
    sharding = images.sharding
    if isinstance(sharding, NamedSharding) and any(kind is not AxisType.Auto for kind in sharding.mesh.axis_types):
        names = sharding.mesh.axis_names
        mesh = Mesh(sharding.mesh.devices, names, axis_types=(AxisType.Auto,) * len(names))
        return jax.device_put(images, NamedSharding(mesh, sharding.spec))
    return images


def _pad(rows: np.ndarray, largest: int, devices: int) -> np.ndarray:
    """Repeats the last row up to a power of two, at least 2, that divides over the devices: one row alone may differ in
    rounding on a CPU."""
    count = min(max(2, 1 << (len(rows) - 1).bit_length()), max(2, largest))
    count = -(-count // devices) * devices
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
