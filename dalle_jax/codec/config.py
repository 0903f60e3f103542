"""What a codec is made of, as data: body, relaxation, reconstruction loss, and the schedules of the objective."""

import dataclasses
import enum
import math

import jax
import jax.numpy as jnp

from dalle_jax.config import check_share


class Body(enum.Enum):
    """Which encoder and decoder stand around the codes."""

    CONV = "conv"  # the published residual convolutions (DALL·E App. A.1)
    PATCH = "patch"  # patches, dense layers and shifts: everything a matrix product, for CPUs


class Relaxation(enum.Enum):
    """How a gradient passes the choice of a code."""

    GUMBEL = "gumbel"  # Gumbel-softmax over logits, KL to the uniform prior (the published one)
    VQ = "vq"  # nearest code, straight-through gradient, codebook as moving averages (VQ-VAE)


class Reconstruction(enum.Enum):
    """The reconstruction part of the objective."""

    LOGIT_LAPLACE = "logit_laplace"  # negative log-likelihood with a learned scale (DALL·E App. A.3)
    PIXEL = "pixel"  # absolute plus squared error: no learned scale that could give up on the hard pixels


@dataclasses.dataclass(frozen=True)
class CosineRamp:
    """From `start` to `end` along half a cosine over the first `steps` updates, then `end`."""

    start: float
    end: float
    steps: int

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"a ramp takes 0 or more steps, not {self.steps}")

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """Value at update `step` (counted from 0), float32 scalar."""
        progress = jnp.minimum(jnp.asarray(step, jnp.float32) / max(self.steps, 1), 1.0) if self.steps else 1.0
        return self.end + (self.start - self.end) * (1.0 + jnp.cos(jnp.pi * progress)) / 2


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """Sizes of the convolutional body; the defaults are the published ones.

    Group k of the encoder is `hidden_dim * 2**(k-1)` wide; the decoder mirrors it. There is one halving of the
    resolution between two groups, so a token covers a square of `2**(num_groups-1)` pixels.
    """

    hidden_dim: int = 256
    decoder_input_dim: int = 128
    num_groups: int = 4
    blocks_per_group: int = 2

    def __post_init__(self):
        if self.hidden_dim % 4 or self.hidden_dim <= 0:
            raise ValueError(f"hidden_dim must be a positive multiple of 4 (bottlenecks), not {self.hidden_dim}")
        if self.num_groups < 1 or self.blocks_per_group < 1:
            raise ValueError("num_groups and blocks_per_group must be at least 1")

    @property
    def stride(self) -> int:
        """Side of the square of pixels that one token covers."""
        return 2 ** (self.num_groups - 1)

    @property
    def residual_scale(self) -> float:
        """What the residual path of every block is multiplied by: 1 / (number of blocks)^2."""
        return 1.0 / (self.num_groups * self.blocks_per_group) ** 2


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """Sizes of the patch body: `fine_patch` pixels a side at the fine level, `stride` at the token level."""

    fine_patch: int = 4
    merge: int = 2
    """Fine cells a side that one token covers; 1: no separate fine level."""
    fine_dim: int = 96
    fine_blocks: int = 1
    """Blocks at the fine level, in the encoder and in the decoder each."""
    token_dim: int = 256
    encoder_blocks: int = 2
    """Blocks at the token level."""
    decoder_blocks: int = 3
    mlp_ratio: int = 2

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < (0 if field.name.endswith("blocks") else 1):
                raise ValueError(f"{field.name} is {getattr(self, field.name)}")

    @property
    def stride(self) -> int:
        """Side of the square of pixels that one token covers."""
        return self.fine_patch * self.merge


@dataclasses.dataclass(frozen=True)
class GumbelConfig:
    """Schedules of the relaxation (DALL·E App. A.2); the defaults are the published ones."""

    kl_weight: CosineRamp = CosineRamp(0.0, 6.6, 5_000)
    temperature: CosineRamp = CosineRamp(1.0, 1 / 16, 150_000)


@dataclasses.dataclass(frozen=True)
class VqConfig:
    """The nearest-code quantizer."""

    code_dim: int = 16
    normalize: bool = True
    """Compare directions: vectors and codes are scaled to length 1 (ViT-VQGAN, Yu et al. 2021)."""
    commitment: float = 0.25
    """Weight of the squared distance from the encoder's vectors to their codes."""
    quantized: CosineRamp = CosineRamp(1.0, 1.0, 0)
    """Share of training images that pass through their codes; the others pass as they are, while the codebook already
    follows the encoder. A ramp from 0 to 1 lets encoder and decoder agree first, so that few codes die."""
    decay: float = 0.99
    """Of the moving averages that make the codebook."""
    dead_share: float = 0.02
    """A code that serves less than this share of its even portion of the vectors is replaced by one of them."""

    def __post_init__(self):
        check_share(self, "decay")


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """A codec: the published discrete VAE by default."""

    codebook_size: int = 8192
    body: Body = Body.CONV
    relaxation: Relaxation = Relaxation.GUMBEL
    reconstruction: Reconstruction = Reconstruction.LOGIT_LAPLACE
    min_log_scale: float | None = None
    """Lower bound of the likelihood's log scales; None: none, as published. Images with flat backgrounds are a trap
    without one: smaller scales there gain more likelihood than the foreground could, and nothing else is learnt."""
    conv: ConvConfig = ConvConfig()
    patch: PatchConfig = PatchConfig()
    gumbel: GumbelConfig = GumbelConfig()
    vq: VqConfig = VqConfig()
    dtype: str = "float32"
    """Of the body's matrix products; those next to the codes are float32 always, as in the release."""
    usage_alarm: float = 0.05
    """Evaluation warns when it sees a smaller share of the codes than this in use."""

    def __post_init__(self):
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, not {self.codebook_size}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', not '{self.dtype}'")

    @property
    def stride(self) -> int:
        """Side of the square of pixels that one token covers."""
        return self.conv.stride if self.body is Body.CONV else self.patch.stride

    @property
    def encoder_features(self) -> int:
        """Channels that the encoder puts out at a cell: logits of every code, or one vector."""
        return self.codebook_size if self.relaxation is Relaxation.GUMBEL else self.vq.code_dim

    def grid_size(self, image_size: int) -> int:
        """Tokens a side of an image with `image_size` pixels a side.

        Raises:
          ValueError: where the image does not divide into tokens.
        """
        if image_size <= 0 or image_size % self.stride:
            near = max(math.ceil(image_size / self.stride), 1) * self.stride
            raise ValueError(f"image_size {image_size} is not a multiple of the codec's {self.stride}: try {near}")
        return image_size // self.stride
