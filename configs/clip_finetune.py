r"""Fine-tuning a published CLIP on images and captions of your own: `clip_finetune.py:WEIGHTS`.

    python -m launch.train --config=configs/clip_finetune.py:ViT-B-32.pt --workdir=runs/tuned \
        --config.data.path='shards/*.tar'
    python -m launch.evaluate --model=runs/tuned --suite=zero_shot --data=cifar10

WEIGHTS is a file of OpenAI's or open_clip's, or a folder of Hugging Face's or open_clip's. Model and tokenizer are
taken from it, and the run keeps the tokenizer. The same command goes on with a run that was stopped. What is trained:

    --config.clip.locked_tower=image                      # LiT: the text tower learns to fit an image tower that stays
    --config.clip.unlocked_layers=2                       # ... and the last two blocks of the locked tower
    --config.clip.train.optimizer.freeze="('token_embedding', 'position_embedding')"    # by names a/b/c
    --config.clip.train.optimizer.lr_scale="(('^(vision|text)/', 0.1),)"   # towers slower than projections and scale
    --config.clip.model.vision.patch_dropout=0.5          # half of the patches, at about half of the cost

Of open_clip's bare files, which cannot tell, both activations must be said where they are not QuickGELU:
`--config.clip.model.vision.transformer.activation=gelu`, and `text` for `vision`.

Source       AdamW at a low rate with warm-up and a cosine, decay 0.1 and the norm clipped at 1, much as Wortsman et al.
             2022 (WiSE-FT) tune whole CLIPs, whose rate is 3e-5; ours is 1e-5. A locked side as in Zhai et al. 2022
             (LiT): the other one bears the rates of training from nothing. Dropped patches as in Li et al. 2023 (FLIP).
Command      as above. Without an argument: the sizes of ViT-B/32, for `--config.init_from=WEIGHTS`.
Result       not recorded: no published weights were at hand. The tests tune small random ones.
"""

import dataclasses
import os
from functools import partial

from clip_jax import ClipConfig, ClipStage
from clip_jax.tokenizers.run_tokenizer import TRAINED
from clip_jax.weights.opening import open_published
from configs import clip
from dalle_jax.config import from_config_dict, to_config_dict
from dalle_jax.data.config import Augment, DataConfig, SourceKind, TokenizerConfig, TokenizerKind
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig


def get_config(arg: str = ""):
    """The path of published weights; `""`: ViT-B/32 without any."""
    if arg:
        published = open_published(arg)
        model = published.config
        own = published.folder is not None and os.path.isfile(os.path.join(published.folder, TRAINED))
    else:
        model, own = from_config_dict(ClipStage, clip.get_config("vit_b32")["clip"]).model, False
    kind = TokenizerKind.TRAINED if own else TokenizerKind.PUBLISHED
    return to_config_dict(
        {
            "seed": 0,
            "init_from": arg or None,
            "data": DataConfig(source=SourceKind.WEBDATASET, image_size=model.vision.image_size),
            "mesh": MeshConfig(),
            "tokenizer": TokenizerConfig(model.text.vocab_size, model.text.context_length, bpe_dropout=0.0, kind=kind),
            "clip": ClipStage(in_bfloat16(model), train(), augment_of(model)),
        }
    )


def in_bfloat16(model: ClipConfig) -> ClipConfig:
    """The model with matrix products in bfloat16; parameters stay float32."""
    cast = partial(dataclasses.replace, dtype="bfloat16", remat=Remat.NONE)
    tower = "resnet" if model.vision.resnet else "transformer"
    vision = dataclasses.replace(model.vision, **{tower: cast(getattr(model.vision, tower))})
    text = dataclasses.replace(model.text, transformer=cast(model.text.transformer))
    return dataclasses.replace(model, vision=vision, text=text)


def augment_of(model: ClipConfig) -> Augment:
    """What images go through in training; where they are not cropped at inference, they are not here either."""
    at_inference = model.vision.preprocessing
    return Augment.CLIP if at_inference is Augment.CLIP_INFERENCE else at_inference


def train() -> TrainConfig:
    """Batches for one GPU; `micro_batches` makes them smaller in memory and leaves their contrasts as they are."""
    optimizer = OptimizerConfig(
        learning_rate=1e-5, warmup_steps=200, b2=0.98, epsilon=1e-6, weight_decay=0.1, clip_norm=1.0
    )
    return TrainConfig(
        batch_size=256,
        num_steps=2_000,
        optimizer=optimizer,
        log_every=20,
        eval_every=200,
        preview_every=0,
        checkpoint_every=500,
    )
