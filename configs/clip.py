"""CLIP as published: `clip.py:rn50`, `:rn101`, `:rn50x4`, `:rn50x16`, `:rn50x64`, `:vit_b32`, `:vit_b16`, `:vit_l14`,
`:vit_l14_336`. SigLIP as published: `:siglip_b16`, `:siglip_so400m14`, `:siglip_so400m14_384`. And `:tiny`,
`:tiny_resnet` and `:siglip_tiny` for a first look.

Source: Radford et al. 2021, Tables 18 to 20; the text tower is the transformer of §2.4. 32 epochs of 400 million pairs
in batches of 32,768; the largest ViT took 12 days on 256 V100 GPUs, the largest ResNet 18 days on 592. `vit_l14_336` is
one more epoch of `vit_l14` at a higher resolution and a lower rate: `--config.init_from=` names the run of `vit_l14`
(its work directory), whose positions are interpolated. The families differ in Adam's second decay and its
epsilon. ResNets normalise by the statistics of the whole batch, however many devices hold it. Where the paper is
silent: the cosine ends at zero, the logit scale is clipped on the parameter after each update. Captions are read by the
published tokenizer; a run's own is `--config.tokenizer.kind=trained --config.clip.model.text.end_id=3`. Differences:
matrix products are in bfloat16 instead of float16 with loss scaling; Adam's moments are float32 where the paper's are
in half precision (`--config.clip.train.optimizer.first_moment_dtype=bfloat16` halves the first); the text tower's
weights are float32 where the paper's are in half precision, rounded stochastically (§2.5).

SigLIP: Zhai et al. 2023; sizes of the models that they published, with captions of 64 positions (So400m at 224 pixels:
16). Batches of 32,768 and a second moment of 0.95 are the paper's, and so is what images go through: all of them is
squeezed into the square, nothing is random. The rate, the weight decay (of kernels alone) and the largest gradient norm
are the usual ones of its code, big_vision. Our own choices: AdamW instead of Adafactor, 40 billion pairs for every
size, a warm-up of 1% of the run, and the higher resolution from the start. The tokenizer is our own here too: it ends
captions with 3 and pads them with 0, where the published one has 1 for both.

Command: `python -m launch.train --config=configs/clip.py:vit_b32 --workdir=W --config.data.path='shards/*.tar'`
Not trained here at the published sizes. The tiny ones read drawn scenes and train in minutes on two cores.
"""

import dataclasses
from functools import partial
from typing import Any

from clip_jax import (
    ClipConfig,
    ClipStage,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    resnet_config,
    tower_config,
)
from clip_jax.weights.siglip import LOGITS, PIXELS
from dalle_jax.config import choose_preset, to_config_dict
from dalle_jax.data.config import Augment, DataConfig, SourceKind, TokenizerConfig, TokenizerKind
from dalle_jax.data.tokenizer import END
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.remat import Remat
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


@dataclasses.dataclass(frozen=True)
class Siglip:
    """A published SigLIP, whose two towers have the same blocks."""

    image_size: int
    patch_size: int
    context_length: int
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int


SIGLIP_PRESETS = {
    "siglip_b16": Siglip(
        image_size=224, patch_size=16, context_length=64, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072
    ),
    "siglip_so400m14": Siglip(
        image_size=224, patch_size=14, context_length=16, num_layers=27, embed_dim=1152, num_heads=16, mlp_dim=4304
    ),
    "siglip_so400m14_384": Siglip(
        image_size=384, patch_size=14, context_length=64, num_layers=27, embed_dim=1152, num_heads=16, mlp_dim=4304
    ),
}
SIGLIP_PAIRS = 40_000_000_000


def get_config(arg: str = "vit_b32"):
    """One of `PRESETS` or `SIGLIP_PRESETS`, `tiny`, `tiny_resnet` or `siglip_tiny`."""
    stages = {name: partial(_published, preset) for name, preset in PRESETS.items()}
    stages |= {name: partial(_published_siglip, preset) for name, preset in SIGLIP_PRESETS.items()}
    stages |= {"tiny": partial(_tiny, VisionConfig(64, 16, tower_config(2, 64, head_dim=32)))}
    stages |= {"tiny_resnet": partial(_tiny, resnet_config(64, (1, 2, 1, 1), 8)), "siglip_tiny": _tiny_siglip}
    stage = choose_preset(stages, arg, "configs/clip.py")()
    vision, text = stage.model.vision, stage.model.text
    published = arg in PRESETS | SIGLIP_PRESETS
    source = SourceKind.WEBDATASET if published else SourceKind.SHAPES
    kind = TokenizerKind.PUBLISHED if arg in PRESETS else TokenizerKind.TRAINED
    return to_config_dict(
        {
            "seed": 0,
            "init_from": None,
            "data": DataConfig(source=source, image_size=vision.image_size, workers=8 if published else 0),
            "mesh": MeshConfig(),
            "tokenizer": TokenizerConfig(text.vocab_size, text.context_length, bpe_dropout=0.0, kind=kind),
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
    text = TextConfig(VOCAB_SIZE, 77, END_ID, tower_config(*preset.text, **choices))
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
    model = ClipConfig(64, vision, TextConfig(160, 24, END, tower_config(2, 64, head_dim=32)))
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=20, b2=0.98, epsilon=1e-6, weight_decay=0.1)
    return ClipStage(model, TrainConfig(batch_size=64, num_steps=200, optimizer=optimizer, eval_every=100))


def _siglip(preset: Siglip, vocab_size: int, **choices: Any) -> ClipConfig:
    blocks = tower_config(
        preset.num_layers,
        preset.embed_dim,
        preset.embed_dim // preset.num_heads,
        mlp_dim=preset.mlp_dim,
        activation=Activation.GELU_TANH,
        norm_epsilon=1e-6,
        **choices,
    )
    vision = VisionConfig(preset.image_size, preset.patch_size, blocks, VisionTower.SIGLIP, **PIXELS)
    text = TextConfig(vocab_size, preset.context_length, END, blocks, TextTower.SIGLIP)
    return ClipConfig(preset.embed_dim, vision, text, **LOGITS)


def _siglip_optimizer(learning_rate: float, warmup_steps: int) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        b2=0.95,
        weight_decay=1e-4,
        no_decay=(r"bias$", r"scale$", r"embedding$", r"probe$"),
        clip_norm=1.0,
    )


def _published_siglip(preset: Siglip) -> ClipStage:
    num_steps = SIGLIP_PAIRS // BATCH
    train = TrainConfig(
        batch_size=BATCH,
        num_steps=num_steps,
        optimizer=_siglip_optimizer(1e-3, num_steps // 100),
        log_every=50,
        eval_every=5000,
        checkpoint_every=5000,
    )
    model = _siglip(preset, 32_000, dtype="bfloat16", remat=Remat.FULL)
    return ClipStage(model, train, Augment.SQUARE)


def _tiny_siglip() -> ClipStage:
    model = _siglip(
        Siglip(image_size=64, patch_size=16, context_length=24, num_layers=2, embed_dim=64, num_heads=2, mlp_dim=256),
        160,
    )
    train = TrainConfig(batch_size=64, num_steps=200, optimizer=_siglip_optimizer(1e-3, 20), eval_every=100)
    return ClipStage(model, train, Augment.SQUARE)
