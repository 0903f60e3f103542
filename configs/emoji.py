r"""Text to emoji: 3,421 glyphs of Noto Color Emoji and their Unicode names, 64x64.

    python -m launch.emoji --out=data/emoji          # makes the set from two public Debian packages
    python -m launch.train --config=configs/emoji.py --workdir=runs/emoji --config.data.path='data/emoji/*.tar'
    python -m launch.generate --workdir=runs/emoji --prompt="woman judge: light skin tone" \
        --num_samples=64 --keep=8 --out=out

`emoji.py` is the full run, for one GPU; `emoji.py:cpu` is a reduced one for two cores (63 minutes of processor time,
79 on the clock beside other programs); `emoji.py:tiny` takes two steps of everything, for tests.

Data         flags, faces, people by profession and skin tone, animals, objects: small, but drawn and named by people,
             and compositional. 5% are held out by a hash of their keys.
Result       see docs/results.md
"""

import dataclasses

from clip_jax import ClipConfig, ClipStage, TextConfig, VisionConfig, tower_config
from configs.quickstart import two_steps
from dalle_jax.codec import Body, CodecConfig, CodecStage, CosineRamp, PatchConfig, Reconstruction, Relaxation, VqConfig
from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import Augment, DataConfig, HeldOutBy, SourceKind, TokenizerConfig
from dalle_jax.decoder.config import DecoderConfig, DecoderStage
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig

IMAGE_SIZE, TEXT_LENGTH = 64, 32


@dataclasses.dataclass(frozen=True)
class Size:
    """What differs between the full run and the reduced ones."""

    codebook_size: int
    codec: PatchConfig
    embed_dim: int
    num_layers: int
    clip_patch: int
    batch_size: int
    codec_steps: int
    decoder_steps: int
    clip_steps: int
    dtype: str
    ema_decay: float
    vocab_size: int = 2048

    @property
    def grid_size(self) -> int:
        """Tokens a side."""
        return IMAGE_SIZE // self.codec.stride


FULL = Size(
    codebook_size=2048,
    codec=PatchConfig(fine_patch=2),
    embed_dim=768,
    num_layers=12,
    clip_patch=8,
    batch_size=128,
    codec_steps=20_000,
    decoder_steps=30_000,
    clip_steps=10_000,
    dtype="bfloat16",
    ema_decay=0.999,
)
CPU = Size(
    codebook_size=1024,
    codec=PatchConfig(
        fine_patch=8, merge=1, fine_dim=192, fine_blocks=0, token_dim=384, encoder_blocks=2, decoder_blocks=4
    ),
    embed_dim=256,
    num_layers=4,
    clip_patch=16,
    batch_size=32,
    codec_steps=1_500,
    decoder_steps=1_000,
    clip_steps=500,
    dtype="float32",
    ema_decay=0.99,
)
TINY = dataclasses.replace(
    CPU,
    codebook_size=32,
    codec=PatchConfig(fine_patch=8, merge=1, fine_dim=32, fine_blocks=0, token_dim=32),
    embed_dim=64,
    vocab_size=120,
)


def get_config(arg: str = ""):
    """`""` for a GPU, `cpu` for two cores, or `tiny`."""
    size = choose_preset({"": FULL, "cpu": CPU, "tiny": TINY}, arg, "configs/emoji.py")
    stages = {"codec": codec(size), "decoder": decoder(size), "clip": clip(size)}
    return to_config_dict(
        {
            "seed": 0,
            "init_from": None,
            "data": DataConfig(
                source=SourceKind.WEBDATASET,
                path="data/emoji/*.tar",
                image_size=IMAGE_SIZE,
                eval_fraction=0.05,
                held_out_by=HeldOutBy.KEY,  # keys are code points; the figures are of this split
            ),
            "mesh": MeshConfig(),
            "tokenizer": TokenizerConfig(size.vocab_size, TEXT_LENGTH, bpe_dropout=0.1),
            **{name: two_steps(stage) if size is TINY else stage for name, stage in stages.items()},
        }
    )


def codec(size: Size) -> CodecStage:
    """The quickstart's codec, wider: 8x8 tokens on two cores, 16x16 on a GPU."""
    model = CodecConfig(
        codebook_size=size.codebook_size,
        body=Body.PATCH,
        relaxation=Relaxation.VQ,
        reconstruction=Reconstruction.PIXEL,
        patch=size.codec,
        vq=VqConfig(normalize=False, commitment=3.0, decay=0.98, dead_share=0.05, quantized=CosineRamp(0.0, 1.0, 300)),
    )
    optimizer = OptimizerConfig(
        learning_rate=2e-3, warmup_steps=100, final_learning_rate=2e-5, b2=0.98, weight_decay=1e-4, clip_norm=1.0
    )
    return CodecStage(model, _train(optimizer, size.batch_size, size.codec_steps), Augment.DALLE)


def decoder(size: Size) -> DecoderStage:
    """The published pattern of layers; captions are dropped now and then, so that guidance works."""
    model = DecoderConfig(
        num_layers=size.num_layers,
        num_heads=size.embed_dim // 64,
        head_dim=64,
        embed_dim=size.embed_dim,
        mlp_dim=4 * size.embed_dim,
        text_vocab_size=size.vocab_size,
        text_length=TEXT_LENGTH,
        codebook_size=size.codebook_size,
        grid_size=size.grid_size,
        conv_kernel=5,
        dropout=0.1,
        caption_dropout=0.1,
        remat=Remat.NONE,
        dtype=size.dtype,
    )
    optimizer = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=200, final_learning_rate=1e-5, b2=0.96, weight_decay=0.045, clip_norm=4.0
    )
    train = dataclasses.replace(_train(optimizer, size.batch_size, size.decoder_steps), ema_decay=size.ema_decay)
    return DecoderStage(model, train, Augment.DALLE)


def clip(size: Size) -> ClipStage:
    """A small CLIP for ranking."""
    width = size.embed_dim // 2
    vision = VisionConfig(IMAGE_SIZE, patch_size=size.clip_patch, transformer=tower_config(4, width, head_dim=32))
    text = TextConfig(size.vocab_size, TEXT_LENGTH, end_id=3, transformer=tower_config(4, width, head_dim=32))
    optimizer = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=100, final_learning_rate=1e-5, b2=0.98, weight_decay=0.2, clip_norm=1.0
    )
    return ClipStage(ClipConfig(width, vision, text), _train(optimizer, 4 * size.batch_size, size.clip_steps))


def _train(optimizer: OptimizerConfig, batch_size: int, num_steps: int) -> TrainConfig:
    return TrainConfig(
        batch_size=batch_size,
        num_steps=num_steps,
        optimizer=optimizer,
        log_every=50,
        eval_every=500,
        eval_batches=1,
        preview_every=500,
        checkpoint_every=500,
    )
