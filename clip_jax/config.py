"""Sizes and choices of a CLIP: two towers and the space they share."""

import dataclasses
import enum
from typing import Any

from dalle_jax.data.config import Augment
from dalle_jax.nn.transformer import Activation, TransformerConfig
from dalle_jax.training.config import TrainConfig


class VisionTower(enum.Enum):
    """What reads the picture."""

    VIT = "vit"
    SIGLIP = "siglip"  # a ViT without class token, pooled by attention

    @property
    def projects(self) -> bool:
        """Whether the tower's own feature is the embedding, with no projection after it."""
        return self is VisionTower.SIGLIP


class TextTower(enum.Enum):
    """What reads the caption."""

    TRANSFORMER = "transformer"
    BAG_OF_WORDS = "bag_of_words"
    SIGLIP = "siglip"  # attends both ways and is read at the last position, which may be a pad

    @property
    def reads_pads(self) -> bool:
        """Whether what stands after a caption's end changes its feature; such captions are never cut."""
        return self is TextTower.SIGLIP


class Loss(enum.Enum):
    """What a batch of pairs is judged by."""

    SOFTMAX = "softmax"  # each picture among all captions, each caption among all pictures (Radford et al. 2021)
    SIGMOID = "sigmoid"  # each pair by itself: do the two belong together? (Zhai et al. 2023)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower. Pictures are square, `image_size` pixels a side, scaled to [0, 1], then normalised."""

    image_size: int
    patch_size: int
    transformer: TransformerConfig
    tower: VisionTower = VisionTower.VIT
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    preprocessing: Augment = Augment.CLIP_INFERENCE
    """How a picture of any size becomes a square at inference: `clip_inference` or `square` (SigLIP's)."""

    def __post_init__(self):
        if self.preprocessing not in (Augment.CLIP_INFERENCE, Augment.SQUARE):
            raise ValueError(f"preprocessing is 'clip_inference' or 'square', not '{self.preprocessing.value}'")
        # The published So400m/14 at 384 pixels leaves six of them out.
        if self.image_size % self.patch_size and self.tower is not VisionTower.SIGLIP:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower. A caption is `[start] words [end]`, padded to `context_length` ids."""

    vocab_size: int
    context_length: int
    end_id: int
    """Of the end-of-text token, whose position holds the caption's feature. OpenAI's is 49407, the tokenizer's of
    `dalle_jax.data` 3. What stands after its first occurrence is padding, whatever the ids."""
    transformer: TransformerConfig
    """A bag of words takes its `embed_dim` and `norm_epsilon` from here and leaves the rest."""
    tower: TextTower = TextTower.TRANSFORMER

    def __post_init__(self):
        if not 0 <= self.end_id < self.vocab_size:
            raise ValueError(f"end_id {self.end_id} is no id of a vocabulary of {self.vocab_size}")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers, the width of the shared space, and the temperature."""

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    init_logit_scale: float = 1 / 0.07
    """Factor on cosines; its logarithm is the parameter."""
    max_logit_scale: float = 100.0
    """Of the softmax loss; SigLIP's has no bound."""
    loss: Loss = Loss.SOFTMAX
    init_logit_bias: float = -10.0
    """Added to scaled cosines by the sigmoid loss, a parameter; near the odds of a random pair in a large batch."""

    def __post_init__(self):
        width = self.vision.transformer.embed_dim
        if self.vision.tower is VisionTower.SIGLIP and width != self.embed_dim:
            raise ValueError(
                f"SigLIP's image tower is as wide as the embedding: {width} is not embed_dim {self.embed_dim}"
            )


@dataclasses.dataclass(frozen=True)
class ClipStage:
    """A training stage: the model, how long and how it is trained, and what is done to its pictures."""

    model: ClipConfig
    train: TrainConfig
    augment: Augment = Augment.CLIP
    loss_chunk: int = 0
    """Captions whose logits a device holds at once, so that no array grows with the batch squared; 0: all of the batch
    (of the sigmoid loss: all of a device). Other values must divide that."""


def tower_config(num_layers: int, embed_dim: int, head_dim: int = 64, **changes: Any) -> TransformerConfig:
    """A transformer in CLIP's proportions: heads of 64, an MLP four times as wide, QuickGELU, norms with 1e-5.

    Args:
      num_layers: blocks.
      embed_dim: width, a multiple of `head_dim`.
      head_dim: of every head.
      **changes: other fields of `TransformerConfig`.
    """
    if embed_dim % head_dim:
        raise ValueError(f"embed_dim {embed_dim} is no multiple of head_dim {head_dim}")
    config = TransformerConfig(
        num_layers=num_layers,
        embed_dim=embed_dim,
        num_heads=embed_dim // head_dim,
        head_dim=head_dim,
        mlp_dim=4 * embed_dim,
        activation=Activation.QUICK_GELU,
        norm_epsilon=1e-5,
    )
    return dataclasses.replace(config, **changes)
