"""CLIP as published: `clip.py:rn50`, `:rn101`, `:rn50x4`, `:rn50x16`, `:rn50x64`, `:vit_b32`, `:vit_b16`, `:vit_l14`,
`:vit_l14_336`; and `:tiny` and `:tiny_resnet` for a first look.

Source: Radford et al. 2021, Tables 18 to 20; the text tower is the transformer of §2.4. 32 epochs of 400 million pairs
in batches of 32,768; the largest ViT took 12 days on 256 V100 GPUs, the largest ResNet 18 days on 592. `vit_l14_336` is
one more epoch of `vit_l14` at a higher resolution and a lower rate. The families differ in Adam's second decay and its
epsilon. ResNets normalise by the statistics of the whole batch, however many devices hold it. Where the paper is
silent: the cosine ends at zero, the logit scale is clipped on the parameter after each update. Differences: captions
are read by a SentencePiece tokenizer trained on them, of the published size; matrix products are in bfloat16 instead of
float16 with loss scaling.

Command: `python -m launch.train --config=configs/clip.py:vit_b32 --workdir=W --config.data.path='shards/*.tar'`
Not trained here at the published sizes. `:tiny` and `:tiny_resnet` read drawn scenes and train in minutes on two cores.
"""

import dataclasses
from functools import partial
from typing import Any

from clip_jax import ClipConfig, ClipStage, TextConfig, VisionConfig, resnet_config, tower_config
from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import DataConfig, SourceKind, TokenizerConfig
from dalle_jax.nn.transformer import Remat
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig

END_ID = 3
"""Of end-of-text in the tokenizers of `dalle_jax.data`."""

PAIRS, EPOCHS, BATCH = 400_000_000, 32, 32_768


@dataclasses.dataclass(frozen=True)
class Preset:
    """One row of Tables 19 and 20."""

    learning_rate: float
    embed_dim: int
    image_size: int
    patch_size: int | None  # of a ViT
    vision: tuple[Any, int]  # layers, width; a ResNet has four stages of layers
    text: tuple[int, int]
    epochs: int = EPOCHS


PRESETS = {
    "rn50": Preset(5e-4, 1024, 224, None, ((3, 4, 6, 3), 64), (12, 512)),
    "rn101": Preset(5e-4, 512, 224, None, ((3, 4, 23, 3), 64), (12, 512)),
    "rn50x4": Preset(5e-4, 640, 288, None, ((4, 6, 10, 6), 80), (12, 640)),
    "rn50x16": Preset(4e-4, 768, 384, None, ((6, 8, 18, 8), 96), (12, 768)),
    "rn50x64": Preset(3.6e-4, 1024, 448, None, ((3, 15, 36, 10), 128), (12, 1024)),
    "vit_b32": Preset(5e-4, 512, 224, 32, (12, 768), (12, 512)),
    "vit_b16": Preset(5e-4, 512, 224, 16, (12, 768), (12, 512)),
    "vit_l14": Preset(4e-4, 768, 224, 14, (24, 1024), (12, 768)),
    "vit_l14_336": Preset(2e-5, 768, 336, 14, (24, 1024), (12, 768), epochs=1),
}


def get_config(arg: str = "vit_b32"):
    """One of `PRESETS`, `tiny` or `tiny_resnet`."""
    stages = {name: partial(_published, preset) for name, preset in PRESETS.items()}
    stages |= {"tiny": partial(_tiny, VisionConfig(64, 16, tower_config(2, 64, head_dim=32)))}
    stages |= {"tiny_resnet": partial(_tiny, resnet_config(64, (1, 2, 1, 1), 8))}
    stage = choose_preset(stages, arg, "configs/clip.py")()
    vision, text = stage.model.vision, stage.model.text
    source = SourceKind.WEBDATASET if arg in PRESETS else SourceKind.SHAPES
    return to_config_dict(
        {
            "seed": 0,
            "init_from": None,
            "data": DataConfig(source=source, image_size=vision.image_size),
            "mesh": MeshConfig(),
            "tokenizer": TokenizerConfig(text.vocab_size, text.context_length, bpe_dropout=0.0),
            "clip": stage,
        }
    )


def _published(preset: Preset) -> ClipStage:
    choices: dict[str, Any] = {"dtype": "bfloat16", "remat": Remat.FULL}
    if preset.patch_size is None:
        vision = resnet_config(preset.image_size, *preset.vision, scan=True, **choices)
        b2, epsilon = 0.999, 1e-8
    else:
        vision = VisionConfig(preset.image_size, preset.patch_size, tower_config(*preset.vision, **choices))
        b2, epsilon = 0.98, 1e-6
    text = TextConfig(49_408, 77, END_ID, tower_config(*preset.text, **choices))
    model = ClipConfig(preset.embed_dim, vision, text)
    optimizer = OptimizerConfig(
        learning_rate=preset.learning_rate, warmup_steps=2000, b1=0.9, b2=b2, epsilon=epsilon, weight_decay=0.2
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


def _tiny(vision: VisionConfig) -> ClipStage:
    model = ClipConfig(64, vision, TextConfig(160, 24, END_ID, tower_config(2, 64, head_dim=32)))
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=20, b2=0.98, epsilon=1e-6, weight_decay=0.1)
    return ClipStage(model, TrainConfig(batch_size=64, num_steps=200, optimizer=optimizer, eval_every=100))
