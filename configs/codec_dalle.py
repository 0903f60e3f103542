"""The discrete VAE of DALL·E as published, and `codec_dalle.py:tiny`, which trains on drawn scenes on two cores.

Source: Ramesh et al. 2021, App. A. 256x256 images to 32x32 tokens of 8192 codes; 53,786,240 + 43,829,766 parameters.
3,000,000 updates of 512 images on 64 V100 GPUs of 16 GB. The cosine of the rate ends after 1,200,000 of them; the
paper does not say what follows, and here the rate stays at its end. Matrix products are in bfloat16 instead of float16
with loss scaling.

Command: `python -m launch.train --config=configs/codec_dalle.py --workdir=W --config.data.path='shards/*.tar'`
Not trained here at the published size. `:tiny` reaches 22.2 dB on held-out scenes with 69% of its codes in use
(docs/results.md).
"""

from dalle_jax.codec import CodecConfig, CodecStage, ConvConfig, CosineRamp, GumbelConfig
from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import Augment, DataConfig, ShapesConfig, SourceKind
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig


def get_config(arg: str = ""):
    """`tiny` is a narrow one for two cores."""
    stage, data = choose_preset({"": _published, "tiny": _tiny}, arg, "configs/codec_dalle.py")()
    return to_config_dict({"seed": 0, "data": data, "mesh": MeshConfig(), "codec": stage})


def _published() -> tuple[CodecStage, DataConfig]:
    optimizer = OptimizerConfig(
        learning_rate=1e-4,
        decay_steps=1_200_000,
        final_learning_rate=1.25e-6,
        weight_decay=1e-4,
    )
    train = TrainConfig(
        batch_size=512,
        num_steps=3_000_000,
        optimizer=optimizer,
        ema_decay=0.999,
        log_every=100,
        eval_every=10_000,
        preview_every=10_000,
        checkpoint_every=10_000,
    )
    data = DataConfig(source=SourceKind.WEBDATASET, image_size=256)
    return CodecStage(CodecConfig(dtype="bfloat16"), train, Augment.DVAE), data


def _tiny() -> tuple[CodecStage, DataConfig]:
    """The same model, narrower, with fewer codes; all three schedules shortened.

    Two things it needs that the published run does not: a floor under the likelihood's scales, for backgrounds here are
    flat, and a rate high enough to leave the plateau at 18.5 dB, where only backgrounds are drawn, within 400 steps.
    """
    model = CodecConfig(
        codebook_size=64,
        min_log_scale=-1.0,
        conv=ConvConfig(hidden_dim=16, decoder_input_dim=32, blocks_per_group=1),
        gumbel=GumbelConfig(kl_weight=CosineRamp(0.0, 6.6, 1_000), temperature=CosineRamp(1.0, 1 / 16, 1_000)),
    )
    optimizer = OptimizerConfig(
        learning_rate=6e-3, final_learning_rate=1.25e-5, b2=0.98, weight_decay=1e-4, clip_norm=1.0
    )
    train = TrainConfig(
        batch_size=32,
        num_steps=2_000,
        optimizer=optimizer,
        ema_decay=0.99,
        log_every=50,
        eval_every=500,
        preview_every=500,
        checkpoint_every=500,
    )
    data = DataConfig(image_size=64, shapes=ShapesConfig(max_objects=2))
    return CodecStage(model, train, Augment.NONE), data
