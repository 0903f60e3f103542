"""Three ways to learn from captions with one image tower (Radford et al. 2021, Fig. 2), as tasks of the training loop.

The paper names them and states neither targets nor scoring; the choices here are:

- caption language model: the image's feature becomes four prefix tokens (App. A.2's LM), a causal transformer
  predicts every token of the caption after the first, and its end. A class scores the log-likelihood of its caption.
- bag-of-words prediction: softmax over the vocabulary from the image's feature; the target is uniform over the
  caption's distinct tokens. A class scores the mean log-probability of its caption's tokens.
- bag-of-words contrastive: CLIP with the bag of words as text tower. A class scores the cosine.

A class with several captions scores the mean over them. Pads count nowhere. The caption model reads the start, and
predicts and scores the end; the bag that is predicted holds neither; the contrastive bag holds both, which every
caption has once (`clip_jax.towers.text.BagOfWords`).
"""

import abc
import dataclasses
import enum
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import normal
from jaxtyping import Array, Float, Int

from clip_jax.config import ClipConfig, ClipStage, TextTower
from clip_jax.losses.accumulation import check_accumulation
from clip_jax.losses.base import normalize
from clip_jax.model import VISION_TOWERS
from clip_jax.task import ClipTask
from clip_jax.towers import initializers
from clip_jax.towers.text import TokenEmbedding, end_positions
from clip_jax.towers.vit import normalize_pixels
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import causal_attention
from dalle_jax.nn.layers import Dense, layer_norm
from dalle_jax.nn.precision import matmul
from dalle_jax.nn.transformer import Transformer, same_everywhere, uniform_kinds
from dalle_jax.training.parallel.processes import to_host
from dalle_jax.training.task import Batch, ModelState, Params, Task, row_weights, weighted_means

PREFIX_LENGTH = 4

Sum = tuple[jax.Array, jax.Array]
"""A sum over a batch, and how many numbers were summed."""


class Objective(enum.Enum):
    """What the image tower is trained by, slowest learner of the paper first."""

    CAPTION = "caption_language_model"
    WORDS = "bag_of_words_prediction"
    CONTRASTIVE = "bag_of_words_contrastive"


class CaptionModel(nn.Module):
    """Captions from images: prefix tokens, then a causal transformer over the caption."""

    config: ClipConfig

    def setup(self):
        text, sizes = self.config.text, self.config.text.transformer
        self.vision = VISION_TOWERS[self.config.vision.tower](self.config.vision)
        self.to_prefix = Dense(PREFIX_LENGTH * sizes.embed_dim, ("embed", None), normal(0.02))
        self.token_embedding = TokenEmbedding(text)
        init = nn.with_logical_partitioning(normal(0.01), (None, "embed"))
        shape = (PREFIX_LENGTH + text.context_length - 1, sizes.embed_dim)
        self.positions = self.param("position_embedding", init, shape, jnp.float32)
        blocks, attend = initializers.text_blocks(sizes), same_everywhere(causal_attention)
        self.transformer = Transformer(sizes, blocks, uniform_kinds(sizes), attend)
        self.norm_final = layer_norm(sizes.norm_epsilon)
        self.head = Dense(text.vocab_size, ("embed", "vocab"), normal(sizes.embed_dim**-0.5))

    def prefix(self, pixels: Float[Array, "B height width 3"], train: bool = False) -> Float[Array, "B prefix D"]:
        """What stands for the image before the caption."""
        return self.to_prefix(self.vision(pixels, train=train)).reshape(len(pixels), PREFIX_LENGTH, -1)

    def token_log_likelihoods(
        self, prefix: Float[Array, "B prefix D"], ids: Int[Array, "B T"], train: bool = False
    ) -> tuple[Float[Array, "B T-1"], Float[Array, "B T-1"]]:
        """Log-likelihoods of all tokens but the first, and 1 for those up to the end, 0 for pads."""
        x = jnp.concatenate([prefix, self.token_embedding(ids[:, :-1])], axis=1)
        x, _ = self.transformer(x + self.positions[: x.shape[1]], deterministic=not train)
        logits = self.head(self.norm_final(x[:, PREFIX_LENGTH:]))
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[..., 0]
        inside = jnp.arange(1, ids.shape[1]) <= end_positions(ids, self.config.text.end_id)[:, None]
        return jnp.where(inside, found, 0), inside.astype(jnp.float32)

    def __call__(self, pixels: Float[Array, "B height width 3"], ids: Int[Array, "B T"], train: bool = False):
        return self.token_log_likelihoods(self.prefix(pixels, train), ids, train)


class WordsModel(nn.Module):
    """Log-probabilities of the vocabulary's entries from an image."""

    config: ClipConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B height width 3"], train: bool = False) -> Float[Array, "B V"]:
        tower = VISION_TOWERS[self.config.vision.tower](self.config.vision, name="vision")
        features = tower(pixels, train=train)
        init = normal(features.shape[-1] ** -0.5)
        return jax.nn.log_softmax(Dense(self.config.text.vocab_size, ("embed", "vocab"), init, name="head")(features))


def word_targets(ids: Int[Array, "... T"], end_id: int, vocab_size: int) -> Float[Array, "... V"]:
    """Uniform over the distinct tokens between start and end; all zero where there are none."""
    places = jnp.arange(ids.shape[-1])
    ends = jnp.argmax(ids == end_id, axis=-1)[..., None]
    words = jnp.where((places > 0) & (places < ends), ids, vocab_size)  # what stands outside falls off
    marks = jax.nn.one_hot(words, vocab_size).max(axis=-2)
    return marks / jnp.maximum(marks.sum(axis=-1, keepdims=True), 1)


class ObjectiveTask(Task):
    """An objective, and zero-shot classification of held-out images by it.

    The model state is that of the image tower: a ResNet's `batch_stats`.
    """

    best_metric, best_mode = "zero_shot_accuracy", "max"

    model: nn.Module

    def __init__(self, stage: ClipStage, classes: Int[np.ndarray, "classes captions T"]):
        """Args:
        stage: towers and text sizes.
        classes: ids of the captions of each class.

        Raises:
          UserError: micro-batches of a ResNet, see `check_accumulation`.
        """
        check_accumulation(stage, stage.train.micro_batches)
        self.config, self.classes = stage.model, classes
        self._evaluated = jax.jit(self._evaluate)

    @abc.abstractmethod
    def summed_loss(
        self, params: Params, model_state: ModelState, batch: Batch, key: jax.Array | None
    ) -> tuple[Sum, ModelState]:
        """The sum that `loss` is the mean of, over the rows that count, and the state after it.

        Without a key as in evaluation: nothing is dropped, stored statistics are read.
        """

    @abc.abstractmethod
    def scores(self, params: Params, model_state: ModelState, images: Array) -> Float[Array, "B classes"]:
        """How well uint8 images fit the classes."""

    def loss(self, params, model_state, batch, *, key, step):
        """See the class."""
        (total, count), model_state = self.summed_loss(params, model_state, batch, key)
        return total / count, (model_state, {})

    def evaluate(self, params: Params, model_state: ModelState, batches: Iterable[Batch]) -> dict[str, float]:
        """`loss` and `zero_shot_accuracy`, means over all batches, which hold `image`, `text` and `label`.

        Raises:
          UserError: a label is of none of the classes.
        """
        found = [to_host(self._evaluated(params, model_state, batch)) for batch in batches]
        results, largest = zip(*found, strict=True)
        if max(largest) >= len(self.classes):
            raise UserError(f"an image has the label {max(largest)}, and there are {len(self.classes)} classes")
        return weighted_means(results)

    def preview(self, params: Params, model_state: ModelState, batch: Batch) -> None:
        return None

    def _evaluate(self, params: Params, model_state: ModelState, batch: Batch) -> tuple[dict[str, Sum], jax.Array]:
        """Sums over one batch, and its largest label."""
        loss, _ = self.summed_loss(params, model_state, batch, None)
        right = self.scores(params, model_state, batch["image"]).argmax(axis=-1) == batch["label"]
        rows = row_weights(batch)
        return {"loss": loss, "zero_shot_accuracy": (jnp.sum(rows * right), jnp.sum(rows))}, batch["label"].max()

    def _apply(
        self, params: Params, model_state: ModelState, *args: Array, key: jax.Array | None
    ) -> tuple[Any, ModelState]:
        """What the model gives, and the state after it; with a key as in training."""
        output, updated = self.model.apply(
            {"params": params, **model_state},
            *args,
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
            mutable=[] if key is None else list(model_state),
        )
        return output, {**model_state, **updated}

    def _blank(self) -> Float[Array, "1 height width 3"]:
        size = self.config.vision.image_size
        return jnp.zeros((1, size, size, 3))

    def _pixels(self, images: Array) -> Array:
        return normalize_pixels(jnp.asarray(images), self.config.vision)


class CaptionTask(ObjectiveTask):
    """The caption language model. Its loss: cross-entropy a token, the mean over all tokens of a (micro-)batch."""

    name = Objective.CAPTION.value

    def __init__(self, stage: ClipStage, classes: Int[np.ndarray, "classes captions T"]):
        super().__init__(stage, classes)
        self.model = CaptionModel(self.config)

    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        text = self.config.text
        ids = jnp.full((1, text.context_length), text.end_id, jnp.int32)
        variables = dict(self.model.init(key, self._blank(), ids))
        return variables.pop("params"), variables

    def summed_loss(self, params, model_state, batch, key):
        pixels, rows = self._pixels(batch["image"]), row_weights(batch)[:, None]
        (found, inside), model_state = self._apply(params, model_state, pixels, batch["text"], key=key)
        return (-(rows * found).sum(), (rows * inside).sum()), model_state

    def scores(self, params: Params, model_state: ModelState, images: Array) -> Float[Array, "B classes"]:
        variables = {"params": params, **model_state}
        prefix = self.model.apply(variables, self._pixels(images), method="prefix")

        def score(ids: Int[Array, " T"]) -> Float[Array, " B"]:
            many = jnp.broadcast_to(ids, (len(images), len(ids)))
            found, _ = self.model.apply(variables, prefix, many, method="token_log_likelihoods")
            return found.sum(axis=-1)

        count, captions, length = self.classes.shape
        found = jax.lax.map(score, jnp.asarray(self.classes.reshape(-1, length)))
        return found.reshape(count, captions, -1).mean(axis=1).T


class WordsTask(ObjectiveTask):
    """Bag-of-words prediction. Its loss: cross-entropy against the words of the caption."""

    name = Objective.WORDS.value

    def __init__(self, stage: ClipStage, classes: Int[np.ndarray, "classes captions T"]):
        super().__init__(stage, classes)
        self.model = WordsModel(self.config)

    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        variables = dict(self.model.init(key, self._blank()))
        return variables.pop("params"), variables

    def summed_loss(self, params, model_state, batch, key):
        rows = row_weights(batch)
        found, model_state = self._apply(params, model_state, self._pixels(batch["image"]), key=key)
        return (-(rows * jnp.sum(self._targets(batch["text"]) * found, axis=-1)).sum(), rows.sum()), model_state

    def scores(self, params: Params, model_state: ModelState, images: Array) -> Float[Array, "B classes"]:
        found, _ = self._apply(params, model_state, self._pixels(images), key=None)
        return matmul(found, self._targets(jnp.asarray(self.classes)).mean(axis=1).T)

    def _targets(self, ids: Array) -> Array:
        return word_targets(ids, self.config.text.end_id, self.config.text.vocab_size)


class ContrastiveTask(ObjectiveTask):
    """CLIP with a bag of words. Its loss: the symmetric cross-entropy of CLIP over the whole batch, also where it is
    cut into micro-batches."""

    name = Objective.CONTRASTIVE.value

    def __init__(self, stage: ClipStage, classes: Int[np.ndarray, "classes captions T"]):
        text = dataclasses.replace(stage.model.text, tower=TextTower.BAG_OF_WORDS)
        stage = dataclasses.replace(stage, model=dataclasses.replace(stage.model, text=text))
        super().__init__(stage, classes)
        self._clip = ClipTask(stage)
        self.model = self._clip.model
        # A mean over micro-batches would have fewer negatives, and the figure would compare another objective.
        self.gradients = self._clip.gradients

    def init(self, key: jax.Array) -> tuple[Params, ModelState]:
        return self._clip.init(key)

    def summed_loss(self, params, model_state, batch, key):
        assert key is None, "training goes by `gradients`"
        return self._clip.evaluate_batch(params, model_state, batch)["loss"], model_state

    def loss(self, params, model_state, batch, *, key, step):
        return self._clip.loss(params, model_state, batch, key=key, step=step)

    def constrain(self, params: Params) -> Params:
        return self._clip.constrain(params)

    def scores(self, params: Params, model_state: ModelState, images: Array) -> Float[Array, "B classes"]:
        variables, model = {"params": params, **model_state}, self.model
        count, captions, length = self.classes.shape
        text = model.apply(variables, jnp.asarray(self.classes.reshape(-1, length)), method="encode_text")
        directions = normalize(normalize(text).reshape(count, captions, -1).mean(axis=1))
        image = normalize(model.apply(variables, self._pixels(images), method="encode_image"))
        return matmul(image, directions.T)


TASKS = {Objective.CAPTION: CaptionTask, Objective.WORDS: WordsTask, Objective.CONTRASTIVE: ContrastiveTask}
