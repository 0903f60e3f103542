"""Classification by prompts (Radford et al. 2021, §3.1): a class is the mean of its captions' directions."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from dalle_jax.errors import UserError

EncodeText = Callable[[Sequence[str]], Float[np.ndarray, "n E"]]


def class_directions(
    encode_text: EncodeText, class_names: Sequence[str], templates: Sequence[str]
) -> Float[np.ndarray, "classes E"]:
    """One unit vector a class: of each filled template the normalised feature, their mean, normalised again.

    Args:
      encode_text: features of captions, normalised or not.
      class_names: what fills the templates.
      templates: captions with `{}` where the name goes.

    Raises:
      UserError: there is no class or no template, or a template has no `{}`.
    """
    if not class_names or not templates:
        raise UserError("zero-shot classification needs at least one class name and one template")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"the template '{template}' has no '{{}}' for the class name")
    captions = [template.replace("{}", name) for name in class_names for template in templates]
    features = _unit(np.asarray(encode_text(captions)))
    return _unit(features.reshape(len(class_names), len(templates), -1).mean(axis=1))


def class_probabilities(
    features: Float[np.ndarray, "B E"], directions: Float[np.ndarray, "classes E"], logit_scale: float
) -> Float[np.ndarray, "B classes"]:
    """Softmax over classes of scaled cosines, float32."""
    logits = logit_scale * _unit(features) @ directions.T
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
