"""A decoder small enough to be killed twenty times on two cores, with all that must survive it.

    python -m launch.chaos --config=configs/chaos.py --kills=20

BPE dropout, random crops, dropout, a running average, and a checkpoint every 20 steps. It learns little: what is asked
is whether the run that was broken off again and again ends as the one that was not. `chaos.py:short` is long
enough for `--kills=5`.

Result       all twenty survived, bit for bit, in 43 minutes on two cores beside other work: docs/many-processes.md
"""

import dataclasses

from configs import quickstart
from dalle_jax.codec import CodecStage, PatchConfig
from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import Augment, DataConfig, ShapesConfig, TokenizerConfig
from dalle_jax.decoder.config import DecoderConfig, DecoderStage
from dalle_jax.nn.attention import Pattern
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig, OptimizerConfig, Schedule, TrainConfig

VOCAB_SIZE, TEXT_LENGTH, CODEBOOK_SIZE = 200, 24, 64


def get_config(arg: str = ""):
    """`""` for `--kills=20`, `short` for `--kills=5`."""
    num_steps = choose_preset({"": 1_000, "short": 120}, arg, "configs/chaos.py")
    shapes = ShapesConfig(num_train=256, num_eval=32)
    return to_config_dict(
        {
            "seed": 0,
            "init_from": None,
            "data": DataConfig(image_size=quickstart.IMAGE_SIZE, shapes=shapes, max_bad_fraction=0.0),
            "mesh": MeshConfig(),
            "tokenizer": TokenizerConfig(VOCAB_SIZE, TEXT_LENGTH, bpe_dropout=0.1),
            "codec": codec(),
            "decoder": decoder(num_steps),
        }
    )


def codec() -> CodecStage:
    """The quickstart's, narrow, and hardly trained: two steps fill the codebook."""
    stage = quickstart.two_steps(quickstart.codec())
    patch = PatchConfig(
        fine_patch=8, merge=1, fine_dim=32, fine_blocks=0, token_dim=32, encoder_blocks=1, decoder_blocks=1
    )
    model = dataclasses.replace(stage.model, codebook_size=CODEBOOK_SIZE, patch=patch)
    train = dataclasses.replace(stage.train, eval_every=0, preview_every=0)
    return dataclasses.replace(stage, model=model, train=train)


def decoder(num_steps: int) -> DecoderStage:
    """Two layers."""
    model = DecoderConfig(
        num_layers=2,
        num_heads=2,
        head_dim=16,
        embed_dim=32,
        mlp_dim=64,
        text_vocab_size=VOCAB_SIZE,
        text_length=TEXT_LENGTH,
        codebook_size=CODEBOOK_SIZE,
        grid_size=8,
        patterns=(Pattern.ROW, Pattern.COLUMN),
        dropout=0.1,
        caption_dropout=0.1,
        remat=Remat.NONE,
        dtype="float32",
    )
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule=Schedule.CONSTANT, warmup_steps=20, clip_norm=1.0)
    train = TrainConfig(
        batch_size=8,
        num_steps=num_steps,
        optimizer=optimizer,
        ema_decay=0.98,
        log_every=1,
        eval_every=num_steps,
        eval_batches=4,
        preview_every=0,
        checkpoint_every=20,
        keep_last=4,
        keep_best=0,
        watchdog_seconds=60.0,
    )
    return DecoderStage(model, train, Augment.DALLE)
