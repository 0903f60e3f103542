"""CLIP as published: `clip.py:vit_b32`, `:vit_b16`, `:vit_l14`, `:vit_l14_336`, and `:tiny` for a first look.

Source: Radford et al. 2021, Tables 18 to 20; the text tower is the transformer of §2.4. 32 epochs of 400 million pairs
in batches of 32,768; the largest took 12 days on 256 V100 GPUs. `vit_l14_336` is one more epoch of `vit_l14` at a
higher resolution and a lower rate. Where the paper is silent: the cosine ends at zero, the logit scale is clipped on
the parameter after each update. Captions are read by the published tokenizer; a run's own is
`--config.tokenizer.kind=trained --config.clip.model.text.end_id=3`. Difference: matrix products are in bfloat16 instead
of float16 with loss scaling.

Command: `python -m launch.train --config=configs/clip.py:vit_b32 --workdir=W --config.data.path='shards/*.tar'`
Not trained here at the published sizes. `:tiny` reads drawn scenes and trains in minutes on two cores.
"""

import dataclasses
from functools import partial

from clip_jax import ClipConfig, ClipStage, TextConfig, VisionConfig, tower_config
from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import DataConfig, SourceKind, TokenizerConfig, TokenizerKind
from dalle_jax.data.tokenizer import END
from dalle_jax.nn.transformer import Remat
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig

VOCAB_SIZE, END_ID = 49_408, 49_407
"""Of the published tokenizer; end-of-text is the last entry."""

PAIRS, EPOCHS, BATCH = 400_000_000, 32, 32_768


@dataclasses.dataclass(frozen=True)
class Preset:
    """One row of Tables 19 and 20."""

    learning_rate: float
    embed_dim: int
    image_size: int
    patch_size: int
    vision: tuple[int, int]  # layers, width
    text: tuple[int, int]
    epochs: int = EPOCHS


PRESETS = {
    "vit_b32": Preset(5e-4, 512, 224, 32, (12, 768), (12, 512)),
    "vit_b16": Preset(5e-4, 512, 224, 16, (12, 768), (12, 512)),
    "vit_l14": Preset(4e-4, 768, 224, 14, (24, 1024), (12, 768)),
    "vit_l14_336": Preset(2e-5, 768, 336, 14, (24, 1024), (12, 768), epochs=1),
}


def get_config(arg: str = "vit_b32"):
    """`vit_b32`, `vit_b16`, `vit_l14`, `vit_l14_336` or `tiny`."""
    stages = {name: partial(_published, preset) for name, preset in PRESETS.items()} | {"tiny": _tiny}
    stage = choose_preset(stages, arg, "configs/clip.py")()
    vision, text = stage.model.vision, stage.model.text
    source = SourceKind.SHAPES if arg == "tiny" else SourceKind.WEBDATASET
    kind = TokenizerKind.TRAINED if arg == "tiny" else TokenizerKind.PUBLISHED
    return to_config_dict(
        {
            "seed": 0,
            "init_from": None,
            "data": DataConfig(source=source, image_size=vision.image_size),
            "mesh": MeshConfig(),
            "tokenizer": TokenizerConfig(text.vocab_size, text.context_length, bpe_dropout=0.0, kind=kind),
            "clip": stage,
        }
    )


def _published(preset: Preset) -> ClipStage:
    choices = {"dtype": "bfloat16", "remat": Remat.FULL}
    model = ClipConfig(
        preset.embed_dim,
        VisionConfig(preset.image_size, preset.patch_size, tower_config(*preset.vision, **choices)),
        TextConfig(VOCAB_SIZE, 77, END_ID, tower_config(*preset.text, **choices)),
    )
    optimizer = OptimizerConfig(
        learning_rate=preset.learning_rate, warmup_steps=2000, b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=0.2
    )
    train = TrainConfig(
        batch_size=BATCH,
        num_steps=preset.epochs * PAIRS // BATCH,
        optimizer=optimizer,
        log_every=50,
        eval_every=5000,
        checkpoint_every=5000,
    )
    return ClipStage(model, train)


def _tiny() -> ClipStage:
    model = ClipConfig(
        64,
        VisionConfig(64, 16, tower_config(2, 64, head_dim=32)),
        TextConfig(160, 24, END, tower_config(2, 64, head_dim=32)),
    )
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=20, b2=0.98, epsilon=1e-6, weight_decay=0.1)
    return ClipStage(model, TrainConfig(batch_size=64, num_steps=200, optimizer=optimizer, eval_every=100))
