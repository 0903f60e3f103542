"""What the parity tests compare with: the same images and captions through a peer's model and through ours.

Imports no peer, so that test modules which skip themselves without one can share it.
"""

import jax.numpy as jnp
import numpy as np

from clip_jax.towers.vit import normalize_pixels

TEXTS = ["a photo of a cat", "two dogs, &amp; a long line of birds over the sea", ""]
TOLERANCE = 1e-4


def pictures(size):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def relative_difference(ours, theirs):
    """The largest difference over the peer's largest value; theirs is an array or a tensor."""
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def same_numbers(clip, encode_image, encode_text, logit_scale):
    """Features of images and captions, and the logits of all pairs."""
    import torch

    images = pictures(clip.config.vision.image_size)
    pixels = np.asarray(normalize_pixels(jnp.asarray(images), clip.config.vision)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        image = encode_image(torch.tensor(pixels))
        text = encode_text(torch.tensor(clip.tokenize(TEXTS)).long())
        units = [features / features.norm(dim=-1, keepdim=True) for features in (image, text)]
        logits = logit_scale.exp() * units[0] @ units[1].T
    assert relative_difference(clip.encode_image(images), image) < TOLERANCE
    assert relative_difference(clip.encode_text(TEXTS), text) < TOLERANCE
    ours = np.stack([clip.score(images, caption) for caption in TEXTS], axis=-1)
    assert relative_difference(ours, logits) < TOLERANCE
