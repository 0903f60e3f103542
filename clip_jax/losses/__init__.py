"""What a CLIP is trained by: every image against every caption of a batch."""

from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.losses.softmax import ContrastiveLoss, contrastive_loss

__all__ = ["ContrastiveLoss", "contrastive_loss", "sigmoid_loss"]
