"""What contrastive losses have in common: their interface, their results, the features that they compare."""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dalle_jax.errors import UserError


class ContrastiveLoss(NamedTuple):
    """The loss, and which counterpart of the batch wins."""

    loss: Float[Array, ""]
    best_text: Int[Array, " B"]
    """Row of the caption that each image scores highest."""
    best_image: Int[Array, " B"]
    """Row of the image that each caption scores highest."""


class Best(NamedTuple):
    """The winner of each row among the columns seen so far; the first of equals, as `argmax` has it."""

    score: Float[Array, " B"]
    index: Int[Array, " B"]

    @classmethod
    def none_yet(cls, count: int) -> "Best":
        return cls(jnp.full(count, -jnp.inf), jnp.zeros(count, jnp.int32))

    def update(self, scores: Float[Array, "B columns"], first: Int[Array, ""] | int) -> "Best":
        """Columns of which the first has the index `first`."""
        score, index = scores.max(axis=-1), jnp.argmax(scores, axis=-1).astype(jnp.int32) + first
        wins = (score > self.score) | ((score == self.score) & (index < self.index))
        return Best(jnp.where(wins, score, self.score), jnp.where(wins, index, self.index))


Mask = Bool[Array, " _"] | None
"""Of pairs: which of them count. The others are nobody's counterpart either. None: all."""


class ContrastiveObjective(abc.ABC):
    """A contrastive loss, with all that a model and its training owe to it.

    One is added by an entry in `clip_jax.losses.OBJECTIVES`, under the name that `config.clip.model.loss` has.
    """

    has_bias: ClassVar[bool] = False
    """Whether a bias on the logits, `logit_bias`, is a parameter."""
    scores_pairs: ClassVar[bool] = False
    """Whether the sigmoid of a logit is the probability of that pair, whatever else is in the batch."""
    logit_products: ClassVar[int] = 1
    """How often the logits of all pairs are computed in a step."""

    @abc.abstractmethod
    def __call__(
        self,
        image: Float[Array, "B E"],
        text: Float[Array, "B E"],
        params: Any,
        *,
        chunk: int = 0,
        mask: Mask = None,
    ) -> ContrastiveLoss:
        """The loss of a batch.

        Args:
          image: projected features, not normalised; row i belongs with row i of `text`.
          text: likewise.
          params: of the model, among them `logit_scale` (its logarithm), and `logit_bias` where there is one.
          chunk: captions whose logits a device holds at once; 0: all.
          mask: the pairs that count.

        Raises:
          UserError: `chunk` does not divide the captions.
        """

    def constrain(self, params: Any, max_logit_scale: float) -> Any:
        """Parameters after an update, brought back into their bounds; none unless a loss has some."""
        del max_logit_scale
        return params

    def metrics(self, params: Any) -> dict[str, jax.Array]:
        """What of the parameters of the loss is written down with each row of metrics."""
        bias = {"logit_bias": params["logit_bias"]} if self.has_bias else {}
        return {"logit_scale": jnp.exp(params["logit_scale"])} | bias


def chunk_of(count: int, chunk: int, what: str) -> int:
    """Checks `loss_chunk` against the `count` captions of `what`; 0 stands for all of them.

    Raises:
      UserError: it does not divide them.
    """
    chunk = min(chunk, count) or count
    if chunk < 0 or count % chunk:
        raise UserError(f"config.clip.loss_chunk={chunk} does not divide the {count} captions of {what}")
    return chunk


def normalize(features: Float[Array, "... E"]) -> Float[Array, "... E"]:
    """Features over their Euclidean length."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
