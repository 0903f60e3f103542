"""Sizes and choices of a CLIP: two towers and the space they share."""

import dataclasses
import enum
from typing import Any

from clip_jax.losses import OBJECTIVES, ContrastiveObjective
from dalle_jax.config import check_at_least, check_share
from dalle_jax.data.config import Augment, Resizing
from dalle_jax.errors import closest
from dalle_jax.nn.layers import Activation, check_dtype
from dalle_jax.nn.remat import Remat
from dalle_jax.nn.transformer import TransformerConfig
from dalle_jax.training.config import TrainConfig


class VisionTower(enum.Enum):
    """What reads the image."""

    VIT = "vit"
    RESNET = "resnet"
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


class ReadAt(enum.Enum):
    """The position that holds a caption's feature."""

    END = "end"  # of the first end-of-text token
    HIGHEST = "highest"  # of the highest id, as OpenAI's code reads it: of a token added after the end token, if any


class Loss(enum.StrEnum):
    """What a batch of pairs is judged by: the names of `clip_jax.losses.OBJECTIVES` that are here from the start."""

    SOFTMAX = "softmax"  # each image among all captions, each caption among all images (Radford et al. 2021)
    SIGMOID = "sigmoid"  # each pair by itself: do the two belong together? (Zhai et al. 2023)


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes and choices of a modified ResNet (`clip_jax.towers.resnet`)."""

    layers: tuple[int, int, int, int]
    """Blocks of each of the four stages."""
    width: int
    """Channels that leave the stem: each stage has twice the one before it, and the feature 32 times as many."""
    head_dim: int = 64
    """Of the attention pool."""
    remat: Remat = Remat.NONE
    """Of each block."""
    scan: bool = False
    """Compile the equal blocks of a stage once and loop over them (the parameters keep the same layout). Not for
    training on a CPU, where XLA's gradient of a convolution inside a loop is tens of times slower."""
    dtype: str = "float32"
    """Of convolutions, matrix products and what goes from block to block: `float32` or `bfloat16`. Parameters,
    normalisations and softmax are float32."""

    def __post_init__(self):
        check_dtype(self.dtype)
        check_at_least(1, self, "width", "head_dim")
        if min(self.layers) < 1:
            raise ValueError(f"layers {self.layers}: a stage has one block at least")
        if self.width % 2 or self.embed_dim % self.head_dim:
            raise ValueError(f"width {self.width} is odd, or 32 x {self.width} no multiple of head_dim {self.head_dim}")

    @property
    def embed_dim(self) -> int:
        """Of the feature."""
        return RESNET_STRIDE * self.width

    @property
    def num_heads(self) -> int:
        """Of the attention pool."""
        return self.embed_dim // self.head_dim


RESNET_STRIDE = 32
"""Side of the square of pixels that one position of a ResNet's last stage stands for."""


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower. Images are square, `image_size` pixels a side, scaled to [0, 1], then normalised."""

    image_size: int
    patch_size: int
    """Side of the square of pixels behind each position; 32 of a ResNet."""
    transformer: TransformerConfig | None = None
    """Of a ViT, and of nothing else."""
    tower: VisionTower = VisionTower.VIT
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resnet: ResNetConfig | None = None
    """Of a ResNet, and of nothing else."""
    patch_dropout: float = 0.0
    """Share of the patches that an image loses in training, drawn anew every time (Li et al. 2023, FLIP); not
    of a ResNet."""
    preprocessing: Augment = Augment.CLIP_INFERENCE
    """How an image of any size becomes a square at inference: `clip_inference`, `square` (SigLIP's), or
    `letterbox`."""
    resizing: Resizing = Resizing()
    """The filter of that, in training too, and the rest."""

    def __post_init__(self):
        check_at_least(1, self, "image_size", "patch_size")
        check_share(self, "patch_dropout")
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_mean {self.pixel_mean} and pixel_std {self.pixel_std}: three each, none of std 0")
        if self.patch_dropout and self.tower is VisionTower.RESNET:
            raise ValueError("patch_dropout is for towers that read patches one by one, not for a ResNet")
        if self.preprocessing not in (Augment.CLIP_INFERENCE, Augment.SQUARE, Augment.LETTERBOX):
            known = "'letterbox', 'clip_inference' or 'square'"
            raise ValueError(f"preprocessing is {known}, not '{self.preprocessing.value}'")
        # The published So400m/14 at 384 pixels leaves six of them out.
        if self.image_size % self.patch_size and self.tower is not VisionTower.SIGLIP:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        is_resnet = self.tower is VisionTower.RESNET
        if (self.resnet is None) is is_resnet or (self.transformer is None) is not is_resnet:
            wanted, other = ("resnet", "transformer") if is_resnet else ("transformer", "resnet")
            raise ValueError(f"a tower of kind '{self.tower.value}' has the sizes `{wanted}` and no `{other}`")
        if is_resnet and self.patch_size != RESNET_STRIDE:
            raise ValueError(f"patch_size of a ResNet is {RESNET_STRIDE}, not {self.patch_size}")

    @property
    def num_patches(self) -> int:
        """Of an image, class token aside."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def kept_patches(self) -> int:
        """Patches of an image in training; always as many, so that shapes are static."""
        return max(1, round((1 - self.patch_dropout) * self.num_patches))

    @property
    def vit(self) -> TransformerConfig:
        """`transformer`, of a tower that is one."""
        assert self.transformer is not None
        return self.transformer

    @property
    def embed_dim(self) -> int:
        """Of the feature before the projection."""
        return self.vit.embed_dim if self.resnet is None else self.resnet.embed_dim


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
    read_at: ReadAt = ReadAt.END
    """`highest` is for transformers whose vocabulary goes on after the end-of-text token."""

    def __post_init__(self):
        check_at_least(1, self, "context_length")
        if self.read_at is ReadAt.HIGHEST and self.tower is not TextTower.TRANSFORMER:
            raise ValueError(f"read_at is 'highest', and a tower of kind '{self.tower.value}' is not read at one id")
        if not 0 <= self.end_id < self.vocab_size:
            raise ValueError(f"end_id {self.end_id} is not an id of a vocabulary of {self.vocab_size}")


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
    loss: str = Loss.SOFTMAX.value
    """A name of `clip_jax.losses.OBJECTIVES`."""
    init_logit_bias: float = -10.0
    """Added to scaled cosines by the sigmoid loss, a parameter; near the odds of a random pair in a large batch."""

    def __post_init__(self):
        if self.loss not in OBJECTIVES:
            raise ValueError(
                f"unknown loss '{self.loss}'{closest(self.loss, OBJECTIVES)} (known: {', '.join(OBJECTIVES)})"
            )
        width = self.vision.embed_dim
        if self.vision.tower is VisionTower.SIGLIP and width != self.embed_dim:
            raise ValueError(
                f"SigLIP's image tower is as wide as the embedding: {width} is not embed_dim {self.embed_dim}"
            )

    @property
    def objective(self) -> ContrastiveObjective:
        """The loss, with all that depends on it."""
        return OBJECTIVES[self.loss]


class Lock(enum.Enum):
    """Which side keeps its parameters while the other learns to fit it (Zhai et al. 2022, LiT)."""

    NONE = "none"
    IMAGE = "image"
    TEXT = "text"


_BEFORE_THE_BLOCKS = "(patch_embedding|class_embedding|token_embedding|position_embedding|norm_pre)"


@dataclasses.dataclass(frozen=True)
class ClipStage:
    """A training stage: the model, how long and how it is trained, and what is done to its images."""

    model: ClipConfig
    train: TrainConfig
    augment: Augment = Augment.CLIP
    locked_tower: Lock = Lock.NONE
    """Short for patterns in `train.optimizer.freeze`: a tower and its projection. The logit scale is trained."""
    unlocked_layers: int = 0
    """Of the locked tower: its last so many blocks are trained, with all that follows them."""
    loss_chunk: int = 0
    """Captions whose logits a device holds at once, so that no array grows with the batch squared; 0: all of the batch
    (of the sigmoid loss: all of a device). Other values must divide that."""

    def __post_init__(self):
        if self.unlocked_layers < 0 or (self.unlocked_layers and self.locked_tower is Lock.NONE):
            raise ValueError(
                f"unlocked_layers is {self.unlocked_layers}: give locked_tower a tower, and a number from 0"
            )
        if self.unlocked_layers and self.locked_tower is Lock.IMAGE and self.model.vision.resnet is not None:
            raise ValueError("unlocked_layers counts the blocks of a transformer: a ResNet is locked whole")
        if self.unlocked_layers and self.unlocked_layers >= self._locked_layers:
            raise ValueError(
                f"unlocked_layers is {self.unlocked_layers}, and the locked tower has {self._locked_layers} blocks"
            )

    @property
    def locked_train(self) -> TrainConfig:
        """`train` with the patterns of `locked_tower` in its optimizer: what the loop is given."""
        if self.locked_tower is Lock.NONE:
            return self.train
        tower, optimizer = self._locked_name, self.train.optimizer
        if self.unlocked_layers:
            freeze = (f"^{tower}/{_BEFORE_THE_BLOCKS}(/|$)",)
            first = ((f"^{tower}/transformer/", self._locked_layers - self.unlocked_layers),)
        else:
            freeze, first = (f"^{tower}(_projection)?/",), ()
        optimizer = dataclasses.replace(
            optimizer, freeze=optimizer.freeze + freeze, freeze_first=optimizer.freeze_first + first
        )
        return dataclasses.replace(self.train, optimizer=optimizer)

    def trains(self, side: Lock) -> bool:
        """Whether a tower is run as in training: patches and units dropped, statistics of the batch taken and kept.

        One that is wholly locked is run as in evaluation.
        """
        return self.locked_tower is not side or self.unlocked_layers > 0

    @property
    def _locked_name(self) -> str:
        return {Lock.IMAGE: "vision", Lock.TEXT: "text"}[self.locked_tower]

    @property
    def _locked_layers(self) -> int:
        return getattr(self.model, self._locked_name).transformer.num_layers


def tower_config(num_layers: int, embed_dim: int, head_dim: int = 64, **changes: Any) -> TransformerConfig:
    """A transformer in CLIP's proportions: heads of 64, an MLP four times as wide, QuickGELU, norms with 1e-5.

    Args:
      num_layers: blocks.
      embed_dim: width, a multiple of `head_dim`.
      head_dim: of every head.
      **changes: other fields of `TransformerConfig`.
    """
    if embed_dim % head_dim:
        raise ValueError(f"embed_dim {embed_dim} is not a multiple of head_dim {head_dim}")
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


def resnet_config(image_size: int, layers: tuple[int, int, int, int], width: int, **changes: Any) -> VisionConfig:
    """An image tower that is a modified ResNet.

    Args:
      image_size: a multiple of 32.
      layers: blocks of each stage.
      width: channels that leave the stem.
      **changes: other fields of `ResNetConfig`.
    """
    sizes = ResNetConfig(layers, width, **changes)
    return VisionConfig(image_size, RESNET_STRIDE, tower=VisionTower.RESNET, resnet=sizes)
