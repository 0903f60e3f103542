"""What a CLIP is trained by: every image against every caption of a batch."""

from clip_jax.losses.base import ContrastiveLoss, ContrastiveObjective
from clip_jax.losses.sigmoid import SigmoidObjective, sigmoid_loss
from clip_jax.losses.softmax import SoftmaxObjective, contrastive_loss

OBJECTIVES: dict[str, ContrastiveObjective] = {"softmax": SoftmaxObjective(), "sigmoid": SigmoidObjective()}
"""By the name that a config has; another one is added here, or from outside before a config names it."""

__all__ = ["OBJECTIVES", "ContrastiveLoss", "ContrastiveObjective", "contrastive_loss", "sigmoid_loss"]
