"""Classification by prompts (Radford et al. 2021, §3.1): a class is the mean of its captions' directions."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dalle_jax.data.captions import listed
from dalle_jax.errors import UserError

ClassName = str | Sequence[str]
"""What fills the templates of a class: a name, or several."""

Template = str | Callable[[str], str]
"""A caption with `{}` where the class's name goes, or a function of the name."""

# What else a person hands over is refused by a line that says what it is; `Any` lets it come that far.
ClassNames = Iterable[ClassName] | Any
Templates = Iterable[Template] | Any

EncodeText = Callable[[Sequence[str]], Float[np.ndarray, "n E"]]

ClassCaptions = tuple[tuple[str, ...], ...]
"""The captions of each class."""


def class_directions(
    encode_text: EncodeText, class_names: ClassNames, templates: Templates
) -> Float[np.ndarray, "classes E"]:
    """One unit vector a class: of each filled template the normalised feature, their mean, normalised again.

    Where a class has several names, each fills every template.

    Args:
      encode_text: features of captions, normalised or not.
      class_names: of each class, in an order.
      templates: captions with `{}` where the name goes, functions of the name, or some of each.

    Raises:
      UserError: see `class_captions`.
    """
    return mean_directions(encode_text, class_captions(class_names, templates))


def class_captions(class_names: ClassNames, templates: Templates) -> ClassCaptions:
    """The filled templates of each class.

    Raises:
      UserError: there is no class or no template, a name is not a string, or a template has no place for it.
    """
    if isinstance(class_names, str) or isinstance(templates, str):
        raise UserError("class names and templates come in lists, ['cat', 'dog'] say, not as one string")
    names = [_names(i, name) for i, name in enumerate(listed(class_names, "class names"))]
    fills = [_filler(template) for template in listed(templates, "templates")]
    if not names or not fills:
        raise UserError("zero-shot classification needs at least one class name and one template")
    return tuple(tuple(fill(name) for name in several for fill in fills) for several in names)


def mean_directions(encode_text: EncodeText, captions: ClassCaptions) -> Float[np.ndarray, "classes E"]:
    """One unit vector a class, from its captions."""
    features = unit(np.asarray(encode_text([caption for several in captions for caption in several])))
    ends = np.cumsum([len(several) for several in captions])
    return unit(np.stack([part.mean(axis=0) for part in np.split(features, ends[:-1])]))


def _names(i: int, name: object) -> list[str]:
    """The names of class i."""
    if isinstance(name, str):
        return [name]
    names = list(name) if isinstance(name, list | tuple | np.ndarray) else [name]
    if not names:
        raise UserError(f"class {i} has no name")
    for other in names:
        if not isinstance(other, str):
            raise UserError(f"the name of class {i} is not a string but {type(other).__name__}: {other!r:.40}")
    return names


def _filler(template: object) -> Callable[[str], str]:
    """The function of a class's name that a template is."""
    if isinstance(template, str):
        if "{}" not in template:
            raise UserError(f"the template '{template}' has no '{{}}' for the class name")
        return lambda name: template.replace("{}", name)
    if not callable(template):
        raise UserError(
            f"a template is a string with '{{}}' or a function, not {type(template).__name__}: {template!r:.40}"
        )

    def fill(name: str) -> str:
        caption = template(name)
        if not isinstance(caption, str):
            raise UserError(f"a template made no string of '{name}' but {type(caption).__name__}: {caption!r:.40}")
        return caption

    return fill


def class_cosines(
    features: Float[np.ndarray, "B E"], directions: Float[np.ndarray, "classes E"]
) -> Float[np.ndarray, "B classes"]:
    """How well images fit classes: what classification ranks, without the ties of saturated probabilities."""
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
