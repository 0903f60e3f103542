"""Sizes and choices of the decoder, and what its stage of a run is told."""

import dataclasses
import enum

from dalle_jax.config import check_at_least, check_share
from dalle_jax.data.config import Augment
from dalle_jax.nn.attention import Grid, find_pattern, published_schedule
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.remat import Remat
from dalle_jax.nn.transformer import TransformerConfig
from dalle_jax.training.config import TrainConfig


class AttentionForm(enum.Enum):
    """How the patterns are computed; the results are equal."""

    STRUCTURED = "structured"  # on the pairs that a pattern needs
    DENSE = "dense"  # all pairs under a mask: the reference


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The transformer over one stream of text and image tokens (DALL·E §2.2, App. B.1).

    The defaults are the published 12-billion-parameter model. What the paper does not state is chosen here: exact GELU
    (Child et al. 2019 use GELU), a LayerNorm before the output heads and GPT-2's initialisation (as every model of
    that family), output heads of their own (the paper counts "embeddings, and unembeddings"), no dropout, and no loss
    on padding.
    """

    num_layers: int = 64
    num_heads: int = 62
    head_dim: int = 64
    embed_dim: int = 3968
    mlp_dim: int = 15872
    text_vocab_size: int = 16384
    text_length: int = 256
    """Text positions, start-of-text among them."""
    codebook_size: int = 8192
    grid_size: int = 32
    """Side of the token grid: `grid_size ** 2` image positions, start-of-image among them."""
    patterns: tuple[str, ...] = ()
    """A name of `dalle_jax.nn.attention.PATTERNS` per layer; empty: the published schedule for `num_layers`."""
    conv_kernel: int = 11
    attention: AttentionForm = AttentionForm.STRUCTURED
    activation: Activation = Activation.GELU
    norm_epsilon: float = 1e-5
    dropout: float = 0.0
    text_loss_weight: float = 0.125
    """Of the text's cross-entropy; the image's weighs 1 minus this."""
    pad_loss: bool = False
    """Whether padding counts among the text targets (as one class, id 0). It is most of a short caption's positions
    and nothing is sampled from it, so by default it does not."""
    caption_dropout: float = 0.0
    """Share of training captions replaced by the empty one; classifier-free guidance needs about 0.1."""
    remat: Remat = Remat.FULL
    scan: bool = True
    dtype: str = "bfloat16"

    def __post_init__(self):
        _ = self.transformer  # which refuses its own sizes
        check_at_least(1, self, "text_vocab_size", "text_length", "codebook_size", "grid_size")
        if self.patterns and len(self.patterns) != self.num_layers:
            raise ValueError(f"patterns holds {len(self.patterns)} entries for num_layers={self.num_layers}")
        for pattern in set(self.schedule):
            find_pattern(pattern).slots(self.grid)  # which refuses a grid that the pattern is not made for
        check_share(self, "text_loss_weight", "caption_dropout")

    @property
    def schedule(self) -> tuple[str, ...]:
        """The pattern of each layer, first to last."""
        return self.patterns or published_schedule(self.num_layers)

    @property
    def grid(self) -> Grid:
        """Of the image tokens, with the settings of the patterns."""
        return Grid(self.grid_size, self.grid_size, self.conv_kernel)

    @property
    def image_length(self) -> int:
        """Image positions."""
        return self.grid_size**2

    @property
    def transformer(self) -> TransformerConfig:
        """The stack's part of this config."""
        names = [field.name for field in dataclasses.fields(TransformerConfig)]
        return TransformerConfig(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class DecoderStage:
    """`config.decoder` of a run."""

    model: DecoderConfig
    train: TrainConfig
    augment: Augment = Augment.DALLE
    codec_from: str | None = None
    """What makes the tokens: a work directory with a codec, or a published codec (`dalle_jax.codec.load_codec`); None:
    the codec of this run."""
