"""What a pickle's names, classes and calls become: values that nothing can run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Call = Callable[..., Any]

_MAX_TEXT = 200
"""Of a name in a message: a file may hold names of any length."""

_MAX_SEARCHED = 100_000


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle speaks of, `module.name`. What it stands for is never looked up."""

    name: str


@dataclasses.dataclass(eq=False, repr=False)
class StandIn:
    """Stands for what a class or a call would have made, inert: it knows only what the pickle gave it.

    Has no text of its own: a value that holds one value twice, many times over, has a text longer than any memory.
    """

    of: str
    """Name of the class or function."""
    args: tuple[Any, ...] = ()
    is_call: bool = False
    """Whether it stands for the result of a call, not for an object of a class."""
    fault: str = ""
    """Of a tensor: why it cannot be read here."""
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    entries: list[Any] = dataclasses.field(default_factory=list)

    def refusal(self, path: str, name: str) -> str:
        """Why there is no tensor in its place, as a message.

        Args:
          path: of the file.
          name: of the tensor.
        """
        if self.is_call:
            return (
                f"{path} is refused: it asks to call {shortened(self.of)} to make '{shortened(name)}', which no "
                "weights need; nothing in it was run"
            )
        return f"{path}: '{shortened(name)}' {self.fault or f'is an object of {shortened(self.of)}, not a tensor'}"


def called(value: Any) -> str:
    """What a message says of a value: its name or its type, for its text may be longer than any memory.

    A tuple that holds one tuple twice, which holds one tuple twice, doubles its text with every two bytes of the file.
    """
    return shortened(value.name) if isinstance(value, Global) else f"an object of {type(value).__name__}"


def shortened(text: str) -> str:
    """The beginning of a text."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def apply(calls: Mapping[str, Call], function: Any, args: Any) -> Any:
    """What a call in a pickle gives: the result of a function on the list, or a stand-in.

    Args:
      calls: the list, by dotted name.
      function: what the pickle calls, a `Global` where the pickle is an honest one.
      args: what it calls it with.

    Returns:
      A stand-in for the call where the function is not on the list; the stand-in among the arguments where a function
      on the list needs what it stands for; else the result.

    Raises:
      TypeError: the arguments are no tuple, or not those of the function.
    """
    if not isinstance(args, tuple):
        raise TypeError(f"arguments of {called(function)} are no tuple")
    known = calls.get(function.name) if isinstance(function, Global) else None
    if known is None:
        return StandIn(function.name if isinstance(function, Global) else called(function), args, is_call=True)
    try:
        return known(*args)
    except TypeError:
        stand_in = next((arg for arg in args if isinstance(arg, StandIn)), None)
        if stand_in is None:
            raise
        return stand_in


def uncalled(value: Any) -> str:
    """For the end of a message about a value without tensors: a call that it asks for, or nothing."""
    waiting, seen = [value], set[int]()
    while waiting and len(seen) < _MAX_SEARCHED:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, StandIn):
            if current.is_call:
                return f"; it asks to call {shortened(current.of)}, which was not run"
            waiting += [*current.args, current.state, current.items, current.entries]
        elif isinstance(current, dict):
            waiting += [*current.keys(), *current.values()]
        elif isinstance(current, list | tuple | set | frozenset):
            waiting += current
    return ""
