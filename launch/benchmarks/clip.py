"""CLIP: a training step, and encoding images and captions."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.clip import Clip
from clip_jax.config import ClipConfig, ClipStage
from clip_jax.flops import image_flops, text_flops
from clip_jax.model import init_variables
from clip_jax.task import ClipTask
from configs import clip as clip_configs
from dalle_jax.config import from_config_dict
from dalle_jax.nn.remat import Remat
from launch.benchmarks.training import repeated_step
from launch.benchmarks.workload import Row, Workload, import_torch, product_dtype, size_of

PEERS = {"vit_b32": "ViT-B-32", "rn50": "RN50"}
"""open_clip's names."""

CAPTION_LENGTH = 21
"""Positions of a caption to its end-of-text token, both ends included."""


def published(preset: str) -> ClipStage:
    """A preset of `configs/clip.py`, nothing recomputed."""
    stage = from_config_dict(ClipStage, clip_configs.get_config(preset)["clip"], "config.clip")
    choices: dict[str, Any] = {"dtype": product_dtype(), "remat": Remat.NONE}
    vision, text = stage.model.vision, stage.model.text
    if vision.resnet is not None:
        loops = jax.default_backend() != "cpu"  # where a convolution's gradient in a loop is slow
        vision = dataclasses.replace(vision, resnet=dataclasses.replace(vision.resnet, scan=loops, **choices))
    else:
        vision = dataclasses.replace(vision, transformer=dataclasses.replace(vision.vit, **choices))
    text = dataclasses.replace(text, transformer=dataclasses.replace(text.transformer, **choices))
    return dataclasses.replace(stage, model=dataclasses.replace(stage.model, vision=vision, text=text))


def _batch(config: ClipConfig, batch_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size, text = config.vision.image_size, config.text
    ids = rng.integers(4, text.vocab_size - 2, (batch_size, text.context_length), np.int32)
    ids[:, CAPTION_LENGTH - 1] = text.end_id
    ids[:, CAPTION_LENGTH:] = 0
    return {"image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8), "text": ids}


def step(preset: str, batch_size: int) -> Workload:
    """A training step of a published size."""
    task = ClipTask(published(preset))
    return repeated_step(task, _batch(task.config, batch_size), batch_size, items=batch_size)


def _handle(preset: str, batch_size: int) -> tuple[Clip, dict[str, np.ndarray]]:
    config = published(preset).model
    state = jax.jit(lambda key: nn.unbox(init_variables(config, key)))(jax.random.key(0))
    params, batch = state.pop("params"), _batch(config, batch_size)
    return Clip(config, params, lambda texts: batch["text"], batch_size=batch_size, model_state=state), batch


def encode_image(preset: str, batch_size: int) -> Workload:
    """Images to features."""
    clip, batch = _handle(preset, batch_size)
    flops = batch_size * image_flops(clip.config.vision, clip.config.embed_dim)
    params = clip.variables["params"]
    weights = size_of([params["vision"], params.get("vision_projection")])
    return Workload(functools.partial(clip.encode_image, jnp.asarray(batch["image"])), flops, weights, items=batch_size)


def encode_text(preset: str, batch_size: int) -> Workload:
    """Captions to features."""
    clip, _ = _handle(preset, batch_size)
    flops = batch_size * text_flops(clip.config.text, clip.config.embed_dim, CAPTION_LENGTH)
    params = clip.variables["params"]
    weights = size_of([params["text"], params["text_projection"]])
    weights -= size_of(params["text"]["token_embedding"])  # of which rows are looked up
    return Workload(functools.partial(clip.encode_text, ["a caption"] * batch_size), flops, weights, items=batch_size)


def _peer(preset: str, batch_size: int) -> tuple[Any, Any, Any]:
    """open_clip's model of a preset with images and captions for it."""
    torch = import_torch()
    import open_clip

    text = torch.randint(1, 49405, (batch_size, 77))
    text[:, CAPTION_LENGTH - 1] = 49407
    return open_clip.create_model(PEERS[preset], pretrained=None), torch.randn(batch_size, 3, 224, 224), text


def peer_step(preset: str, batch_size: int) -> Workload:
    """open_clip's training step of the same size."""
    torch = import_torch()
    import open_clip

    model, images, text = _peer(preset, batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    loss = open_clip.ClipLoss()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(*model(images, text)[:3]).backward()
        optimizer.step()

    config = published(preset)
    return Workload(run, flops=ClipTask(config).step_flops(batch_size), items=batch_size)


def peer_encode(preset: str, what: str, batch_size: int) -> Workload:
    """open_clip's features, of `image` or `text`."""
    torch = import_torch()
    model, images, text = _peer(preset, batch_size)
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            model.encode_image(images) if what == "image" else model.encode_text(text)

    config = published(preset).model
    if what == "image":
        flops = image_flops(config.vision, config.embed_dim)
    else:
        flops = text_flops(config.text, config.embed_dim, CAPTION_LENGTH)
    return Workload(run, flops=batch_size * flops, items=batch_size)


def _row(name: str, shape: str, unit: str, make: Any, make_peer: Any) -> Row:
    return Row(name=name, shape=shape, unit=unit, make=make, make_peer=make_peer, peer="open_clip", reach=1.0)


ROWS = (
    _row("clip_step", "ViT-B/32, batch 32", "pairs", lambda: step("vit_b32", 32), lambda: peer_step("vit_b32", 32)),
    _row(
        "clip_encode_image",
        "ViT-B/32, batch 64",
        "images",
        lambda: encode_image("vit_b32", 64),
        lambda: peer_encode("vit_b32", "image", 64),
    ),
    _row(
        "clip_encode_text",
        f"ViT-B/32, batch 64, captions of {CAPTION_LENGTH} tokens",
        "captions",
        lambda: encode_text("vit_b32", 64),
        lambda: peer_encode("vit_b32", "text", 64),
    ),
    _row("clip_rn50_step", "RN50, batch 32", "pairs", lambda: step("rn50", 32), lambda: peer_step("rn50", 32)),
    _row(
        "clip_rn50_encode_image",
        "RN50, batch 64",
        "images",
        lambda: encode_image("rn50", 64),
        lambda: peer_encode("rn50", "image", 64),
    ),
    Row("clip_b16_step", "ViT-B/16, batch 256", "pairs", lambda: step("vit_b16", 256), gpu=True),
    Row("clip_b16_encode_image", "ViT-B/16, batch 256", "images", lambda: encode_image("vit_b16", 256), gpu=True),
)
