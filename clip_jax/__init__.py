"""CLIP: contrastive training of an image tower and a text tower, zero-shot classification, and scores for ranking."""

from clip_jax.clip import Clip
from clip_jax.config import (
    ClipConfig,
    ClipStage,
    Lock,
    Loss,
    ResNetConfig,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    resnet_config,
    tower_config,
)
from clip_jax.loading import load
from clip_jax.model import ClipModel, ClipOutput
from clip_jax.task import ClipTask
from clip_jax.weights.export import save

__all__ = [
    "Clip",
    "ClipConfig",
    "ClipModel",
    "ClipOutput",
    "ClipStage",
    "ClipTask",
    "Lock",
    "Loss",
    "ResNetConfig",
    "TextConfig",
    "TextTower",
    "VisionConfig",
    "VisionTower",
    "load",
    "resnet_config",
    "save",
    "tower_config",
]
