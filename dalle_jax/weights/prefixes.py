"""What stands before the names of a model's tensors: wrappers of training programs, and models that hold a model."""

import collections
from collections.abc import Mapping

from dalle_jax.errors import UserError
from dalle_jax.weights.stand_ins import shortened
from dalle_jax.weights.tensors import Tensor

_ANYWHERE = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
"""Parts of names that PyTorch's wrappers put there, around a model or around any part of it."""

_AROUND = ("module.", "_forward_module.", "base_model.model.", "model.", "clip.", "clip_model.")
"""What stands before every name where a parallel module, DeepSpeed, PEFT or Lightning holds the model."""

_MAX_SHOWN = 12


def unwrapped(tensors: Mapping[str, Tensor], prefix: str | None, path: str) -> dict[str, Tensor]:
    """Tensors by the names that the model itself gives them.

    Args:
      tensors: by the names of the file.
      prefix: what wanted names begin with, its last dot or not; None: all are wanted.
      path: for messages.

    Raises:
      UserError: no name begins so, or two names differ by a wrapper alone.
    """
    found = {".".join(part for part in name.split(".") if part not in _ANYWHERE): x for name, x in tensors.items()}
    if len(found) < len(tensors):
        raise UserError(f"{path} is refused: two of its names differ by a wrapper's part alone")
    if prefix is None:
        return _without_wrappers(found)
    start = prefix if prefix.endswith((".", "/")) else f"{prefix}."
    for names in (tensors, found, _without_wrappers(found)):
        chosen = {name.removeprefix(start): tensor for name, tensor in names.items() if name.startswith(start)}
        if chosen:
            return unwrapped(chosen, None, path)
    raise UserError(f"{path}: no name begins with prefix='{prefix}'; names begin with {_beginnings(found)}")


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in _AROUND:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return _without_wrappers({name.removeprefix(wrapper): tensor for name, tensor in tensors.items()})
    return tensors


def _beginnings(names: Mapping[str, Tensor]) -> str:
    counted = collections.Counter(name.split(".")[0] for name in names if "." in name).most_common()
    more = f" and {len(counted) - _MAX_SHOWN} others" if len(counted) > _MAX_SHOWN else ""
    return ", ".join(f"'{shortened(start)}.' ({count})" for start, count in counted[:_MAX_SHOWN]) + more
