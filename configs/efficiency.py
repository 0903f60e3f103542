"""The efficiency figure of CLIP (Radford et al. 2021, Fig. 2) at the size of CIFAR-10.

    python -m launch.efficiency --config=configs/efficiency.py --workdir=runs/efficiency

Data and towers are those of `clip_cifar10.py`, which says how its data are had: smaller here, for fifteen runs of about
ten minutes each on two cores, and of that file's size in `efficiency.py:gpu`. `efficiency.py:tiny` takes two steps of
everything, and `efficiency.py:resnet` has a small ResNet, the paper's kind of tower, on images brought to 64 pixels
a side. The paper: a ResNet-50 and a 63-million-parameter text transformer on 400 million pairs, where the caption
language model needs 3 times the images of bag-of-words prediction, and that 4 times those of contrastive training. It
is silent on targets and scoring: `clip_jax.objectives` says what is chosen here.

Result       300 steps of each in 47 minutes on two cores: contrast needs 1/5.4 of the images of bag-of-words
             prediction and 1/2.0 of those of the caption model, which is ahead of the words here (docs/results.md). Not
             run in full.
"""

import dataclasses

from clip_jax import resnet_config, tower_config
from configs.clip_cifar10 import CPU, GPU, clip
from configs.clip_cifar10 import get_config as cifar10
from dalle_jax.config import choose_preset, to_config_dict

RESNET = resnet_config(64, (1, 1, 1, 1), 16)


def get_config(arg: str = ""):
    """`""` for two cores, `gpu` for a GPU, `resnet` for another tower, `tiny` for tests."""
    small = dataclasses.replace(CPU, num_layers=4, embed_dim=96, num_steps=1_000)
    sizes = {
        "": small,
        "gpu": dataclasses.replace(GPU, num_steps=6_000),
        "resnet": small,
        "tiny": dataclasses.replace(small, num_layers=1),
    }
    size = choose_preset(sizes, arg, "configs/efficiency.py")
    stage = clip(size)
    train = dataclasses.replace(
        stage.train, eval_every=size.num_steps // 20, checkpoint_every=size.num_steps // 4, keep_last=1
    )
    if arg == "tiny":
        train = dataclasses.replace(train, batch_size=8, num_steps=2, eval_every=1, eval_batches=1, log_every=1)
        vision = dataclasses.replace(stage.model.vision, transformer=tower_config(1, 32, head_dim=32))
        stage = dataclasses.replace(stage, model=dataclasses.replace(stage.model, vision=vision))
    if arg == "resnet":
        stage = dataclasses.replace(stage, model=dataclasses.replace(stage.model, vision=RESNET))
    shared = cifar10()
    shared.data.image_size = stage.model.vision.image_size
    return to_config_dict(
        {
            "data": shared.data,
            "tokenizer": shared.tokenizer,
            "clip": dataclasses.replace(stage, train=train),
            "prompts": "CIFAR10",
            "templates": ("a photo of a {}",),
            "learning_rates": (1e-3,) if arg == "tiny" else (3e-4, 1e-3, 3e-3),
            "seeds": (0, 1) if arg == "tiny" else (0, 1, 2),
            "mesh": shared.mesh,
        }
    )
