"""The published 12-billion-parameter decoder (DALL·E §2.2, App. B): 64 layers, 62 heads of 64, batch 1024.

    python -m launch.train --config=configs/decoder_12b.py --workdir=gs://BUCKET/dalle-12b \
        --config.data.path='gs://BUCKET/pairs/{00000..24999}.tar' --config.decoder.codec_from=gs://BUCKET/codec

Source       Ramesh et al. 2021, App. B.2: AdamW 0.9/0.96 with decay 0.045, global gradient norm clipped at 4, Adam's
             second moment at 5, warm-up over 5,000 updates to 4.5e-4, halved on five plateaus, 430,000 updates, average
             of the weights with 0.99 every 25 updates, 10% BPE dropout.
Differs      bfloat16 products instead of float16 with per-block scaling and compressed gradients: see
             docs/decisions/0003-bfloat16.md. The rule for a plateau is not published; `plateau_*` is ours.
Hardware     256 chips as a 16x16 mesh. 62 heads divide by 2 and 31 alone, so weights are split along both mesh axes and
             gathered for use, and the batch is split over all 256: no axis has to divide the heads.
Result       not run at this size; the model is built abstractly and its shardings are tested (tests/configs).
"""

from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import DataConfig, SourceKind, TokenizerConfig
from dalle_jax.decoder.config import DecoderConfig, DecoderStage
from dalle_jax.training.config import MeshConfig, OptimizerConfig, Schedule, TrainConfig


def optimizer() -> OptimizerConfig:
    """The published optimizer (App. B.2); shared with the smaller decoder."""
    return OptimizerConfig(
        learning_rate=4.5e-4,
        schedule=Schedule.PLATEAU,
        warmup_steps=5_000,
        halvings=5,
        b1=0.9,
        b2=0.96,
        epsilon=1e-8,
        weight_decay=4.5e-2,
        clip_norm=4.0,
        second_moment_clip=5.0,
        first_moment_dtype="bfloat16",
    )


def get_config(arg: str = ""):
    """The published model; there are no variants."""
    choose_preset({"": None}, arg, "configs/decoder_12b.py")
    decoder = DecoderStage(
        model=DecoderConfig(),
        train=TrainConfig(
            batch_size=1024,
            num_steps=430_000,
            optimizer=optimizer(),
            ema_decay=0.99,
            ema_every=25,
            log_every=50,
            eval_every=2_000,
            preview_every=10_000,
            checkpoint_every=1_000,
            keep_every=50_000,
        ),
    )
    return to_config_dict(
        {
            "seed": 0,
            "data": DataConfig(source=SourceKind.WEBDATASET, path="", image_size=256, workers=8),
            "tokenizer": TokenizerConfig(vocab_size=16384, text_length=256, bpe_dropout=0.1),
            "mesh": MeshConfig(data=-1, fsdp=16, tensor=16, rules=(("batch", ("data", "fsdp", "tensor")),)),
            "decoder": decoder,
        }
    )
