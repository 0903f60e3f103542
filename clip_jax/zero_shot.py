"""Classification by prompts (Radford et al. 2021, §3.1): a class is the mean of its captions' directions."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from dalle_jax.errors import UserError

ClassName = str | Sequence[str]
"""What fills the templates of a class: a name, or several."""

EncodeText = Callable[[Sequence[str]], Float[np.ndarray, "n E"]]


def class_directions(
    encode_text: EncodeText, class_names: Sequence[ClassName], templates: Sequence[str]
) -> Float[np.ndarray, "classes E"]:
    """One unit vector a class: of each filled template the normalised feature, their mean, normalised again.

    Where a class has several names, each fills every template.

    Args:
      encode_text: features of captions, normalised or not.
      class_names: of each class.
      templates: captions with `{}` where the name goes.

    Raises:
      UserError: there is no class or no template, or a template has no `{}`.
    """
    refuse_strings(class_names, templates)
    if not class_names or not templates:
        raise UserError("zero-shot classification needs at least one class name and one template")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"the template '{template}' has no '{{}}' for the class name")
    names = [[name] if isinstance(name, str) else list(name) for name in class_names]
    if not all(names):
        raise UserError(f"class {names.index([])} has no name")
    captions = [template.replace("{}", name) for several in names for name in several for template in templates]
    features = unit(np.asarray(encode_text(captions)))
    ends = np.cumsum([len(several) * len(templates) for several in names])
    return unit(np.stack([part.mean(axis=0) for part in np.split(features, ends[:-1])]))


def refuse_strings(class_names: Sequence[ClassName], templates: Sequence[str]) -> None:
    """Raises: UserError: one string stands where a list should; its letters would be taken for names."""
    if isinstance(class_names, str) or isinstance(templates, str):
        raise UserError("class names and templates come in lists, ['cat', 'dog'] say, not as one string")


def class_cosines(
    features: Float[np.ndarray, "B E"], directions: Float[np.ndarray, "classes E"]
) -> Float[np.ndarray, "B classes"]:
    """How well pictures fit classes: what classification ranks, without the ties of saturated probabilities."""
    return unit(features) @ directions.T


def class_probabilities(
    features: Float[np.ndarray, "B E"], directions: Float[np.ndarray, "classes E"], logit_scale: float
) -> Float[np.ndarray, "B classes"]:
    """Softmax over classes of scaled cosines, float32."""
    logits = logit_scale * class_cosines(features, directions)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(x: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(np.zeros_like(x), -x))


def unit(x: Float[np.ndarray, "n E"]) -> Float[np.ndarray, "n E"]:
    """Rows over their Euclidean length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
