"""A 1.3-billion-parameter decoder in the published form: 24 layers, 32 heads of 64, batch 512.

    python -m launch.train --config=configs/decoder_1b.py --workdir=gs://BUCKET/dalle-1b \
        --config.data.path='gs://BUCKET/pairs/{00000..00999}.tar' --config.decoder.codec_from=gs://BUCKET/codec

`decoder_1b.py:tiny` is its sibling for a test: the same schedule of patterns at a twenty-thousandth of the size.

Source       the 12-billion recipe (configs/decoder_12b.py) with the width of GPT-3 XL; the paper's own preliminary runs
             went up to 1.2 billion (App. C), with settings that it does not print.
Hardware     32 or 64 chips of 16 GiB, 16 of 32 GiB (docs/plans.md), or 8 GPUs of 80 GiB (estimated); all of them
             are taken (`mesh.fsdp=-1`).
Result       not run at this size.
"""

from configs.decoder_12b import optimizer
from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import Augment, DataConfig, ShapesConfig, SourceKind, TokenizerConfig
from dalle_jax.decoder.config import DecoderConfig, DecoderStage
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig


def get_config(arg: str = ""):
    """`""` or `tiny`."""
    return choose_preset({"": _full, "tiny": _tiny}, arg, "configs/decoder_1b.py")()


def _full():
    model = DecoderConfig(num_layers=24, num_heads=32, head_dim=64, embed_dim=2048, mlp_dim=8192)
    train = TrainConfig(
        batch_size=512,
        num_steps=200_000,
        optimizer=optimizer(),
        ema_decay=0.99,
        ema_every=25,
        log_every=50,
        eval_every=2_000,
        preview_every=10_000,
    )
    return to_config_dict(
        {
            "seed": 0,
            "data": DataConfig(source=SourceKind.WEBDATASET, path="", image_size=256, workers=8),
            "tokenizer": TokenizerConfig(),
            "mesh": MeshConfig(data=1, fsdp=-1),
            "decoder": DecoderStage(model=model, train=train),
        }
    )


def _tiny():
    model = DecoderConfig(
        num_layers=6, num_heads=2, head_dim=16, embed_dim=32, mlp_dim=64, text_vocab_size=150, text_length=24,
        codebook_size=32, grid_size=8, conv_kernel=3, remat=Remat.FULL, dtype="float32",
    )  # fmt: skip
    train = TrainConfig(
        batch_size=8,
        num_steps=2,
        optimizer=OptimizerConfig(learning_rate=1e-3),
        ema_decay=0.99,
        log_every=1,
        eval_every=2,
        eval_batches=1,
        preview_every=2,
    )
    data = DataConfig(image_size=64, shapes=ShapesConfig(num_train=64, num_eval=16))
    return to_config_dict(
        {
            "seed": 0,
            "data": data,
            "tokenizer": TokenizerConfig(vocab_size=150, text_length=24),
            "mesh": MeshConfig(),
            "decoder": DecoderStage(model=model, train=train, augment=Augment.NONE),
        }
    )
