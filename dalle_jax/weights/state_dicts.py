"""Which values of a checkpoint are its model's tensors, among all that training keeps beside them."""

import logging
from collections.abc import Iterator
from typing import Any

from dalle_jax.errors import UserError
from dalle_jax.weights.numpy_arrays import array_of
from dalle_jax.weights.stand_ins import StandIn, called, shortened, uncalled
from dalle_jax.weights.tensors import Held, Tensor, Unread

_log = logging.getLogger(__name__)

_USUAL = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "params", "weights")
"""Where the model is in the checkpoints of common programs, the first that is there."""

_TABLES, _TEMPORARY = ("_parameters", "_buffers", "_modules"), "_non_persistent_buffers_set"

_MAX_WRAPPERS, _MAX_MEMBERS, _MAX_NAME = 10, 200_000, 1_000
"""More than any checkpoint has; a small file can have its dicts and modules hold each other, or one of them often."""

_MAX_SHOWN = 12
"""Keys in a message."""


def named_tensors(value: Any, path: str, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by PyTorch's names; `Unread` where a name is of something that is not read here.

    Args:
      value: as `read_torch` gives it: a state dict, a checkpoint that holds one, or a module.
      path: for messages.
      key: which value of a checkpoint it is, `ema` or `ema.model`; None: the usual one, or the only one.

    Raises:
      UserError: there are none, several, or nothing has that key; the message lists the keys that are there.
    """
    value = _unwrapped(value if key is None else _at(value, key, path), path)
    if isinstance(value, dict):
        found = ((name, item) for name, item in value.items() if isinstance(name, str))
    else:
        found = _module_items(value, path) if isinstance(value, StandIn) else ()
    tensors = {name: _tensor(item, name, path) for name, item in found if isinstance(item, Tensor | StandIn)}
    if not tensors:
        raise UserError(f"{path} holds no named tensors: is it a checkpoint of a model?{_keys(value)}{uncalled(value)}")
    if all(isinstance(tensor, Unread) for tensor in tensors.values()):
        first = next(tensor.why for tensor in tensors.values() if isinstance(tensor, Unread))
        raise UserError(f"{first}; no tensor beside it can be read")
    return tensors


def _tensor(item: Tensor | StandIn, name: str, path: str) -> Tensor:
    if isinstance(item, Tensor):
        return item
    array = array_of(item)
    return Unread(item.refusal(path, name)) if array is None else Held.of(path, array)


def _at(value: Any, key: str, path: str) -> Any:
    """What a checkpoint holds under a key, or under keys with dots between them."""
    rest = key
    while isinstance(value, dict):
        if rest in value:
            return value[rest]
        first, _, rest = rest.partition(".")
        if first not in value or not rest:
            break
        value = value[first]
    raise UserError(f"{path} holds nothing under key='{key}'{_keys(value)}")


def _keys(value: Any) -> str:
    """For the end of a message: the keys of a dict."""
    names = [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []
    if not names:
        return f" (it is {called(value)})"
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f" (its keys are {', '.join(repr(shortened(name)) for name in names[:_MAX_SHOWN])}{more})"


def _unwrapped(value: Any, path: str) -> Any:
    """The state dict or module of a checkpoint that holds other things beside it."""
    for _ in range(_MAX_WRAPPERS):
        key = _model_key(value, path) if isinstance(value, dict) else None
        if key is None:
            return value
        value = value[key]
    raise UserError(f"{path} is refused: its state dicts contain each other")


def _model_key(value: dict[Any, Any], path: str) -> str | None:
    """Where the model is in a dict; None: the dict itself is the state dict, or holds none."""
    nested = [key for key, item in value.items() if isinstance(key, str) and isinstance(item, dict | StandIn)]
    models = [key for key in nested if _is_model(value[key])]
    usual = [key for key in _USUAL if key in (models or nested)]
    if usual:
        others = [key for key in models if key != usual[0]]
        if others:
            told = ", ".join(f"key='{shortened(key)}'" for key in others[:_MAX_SHOWN])
            _log.warning("%s: '%s' is taken of several state dicts; the others are %s", path, usual[0], told)
        return usual[0]
    if not models or _is_model(value):
        return None
    if len(models) > 1:
        told = ", ".join(f"key='{shortened(key)}'" for key in models[:_MAX_SHOWN])
        raise UserError(f"{path} holds several state dicts: choose one with {told}")
    return models[0]


def _is_model(value: Any) -> bool:
    """Whether a value is a module, or a dict that holds a matrix by name: states of optimizers hold none."""
    if isinstance(value, StandIn):
        return isinstance(value.state, dict) and isinstance(value.state.get("_parameters"), dict)
    return any(
        isinstance(name, str) and isinstance(item, Tensor) and len(item.shape) > 1 for name, item in value.items()
    )


def _module_items(module: StandIn, path: str) -> Iterator[tuple[str, Tensor | StandIn]]:
    """Parameters and buffers of a pickled `nn.Module`, or of a TorchScript object."""
    waiting, count = [("", module)], 0
    while waiting:
        prefix, current = waiting.pop()
        found = _members(current, path)
        count += 1 + len(found)
        if count > _MAX_MEMBERS or any(len(prefix) + len(name) > _MAX_NAME for name in found):
            raise UserError(f"{path} is refused: its modules contain each other")
        for name, item in found.items():
            if isinstance(item, Tensor) or ((item.is_call or item.fault) and not isinstance(item.state, dict)):
                yield f"{prefix}{name}", item
            else:
                waiting.append((f"{prefix}{name}.", item))


def _members(module: StandIn, path: str) -> dict[str, Tensor | StandIn]:
    """Tensors and modules that a module holds, by attribute; of a pickled `nn.Module`, those of its state dict."""
    state = module.state if isinstance(module.state, dict) else {}
    if isinstance(state.get("_parameters"), dict):
        kinds: dict[str, type] = dict.fromkeys(_TABLES, dict) | {_TEMPORARY: set}
        held = {name: state[name] if state.get(name) is not None else kind() for name, kind in kinds.items()}
        wrong = [name for name, kind in kinds.items() if not isinstance(held[name], kind)]
        if wrong:
            raise UserError(f"{path} is refused: '{wrong[0]}' of a module is {called(held[wrong[0]])}")
        parameters, buffers, modules = (held[name] for name in _TABLES)
        state = parameters | {name: item for name, item in buffers.items() if name not in held[_TEMPORARY]} | modules
    # Other names have no use, and no text that is sure to end.
    return {name: item for name, item in state.items() if isinstance(name, str) and isinstance(item, Tensor | StandIn)}
