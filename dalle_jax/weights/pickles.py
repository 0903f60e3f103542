"""Pickles read without being run.

A pickle is a program: it names functions and says what to call them with. This reader interprets its few operations on
plain values alone. It imports nothing; a name is a `Global`, an object of a class is a `StandIn`, and the only calls
are those of a closed list, each to a function written here or handed in. Any other call is not made: a `StandIn` takes
the place of its result, so that values which nobody needs do not stand in the way of the weights beside them.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from typing import IO, Any, cast

from dalle_jax.errors import UserError
from dalle_jax.weights.stand_ins import Call, Global, StandIn, apply

_MAX_KEY = 100
"""Values inside a key. The hash of tuples in tuples can take for ever, where they share what they hold."""


def _keys(items: Any) -> list[Any]:
    """Items that may be hashed.

    Raises:
      TypeError: the hash of one would take too long.
    """
    items = list(items)
    for item in items:
        waiting, count = [item], 0
        while waiting:
            current = waiting.pop()
            if isinstance(current, tuple | frozenset):
                waiting += current
                count += len(current)
            if count > _MAX_KEY:
                raise TypeError(f"a key is a tuple of tuples that hold over {_MAX_KEY} values")
    return items


def _dict(items: Any = ()) -> dict[Any, Any]:
    pairs = [(key, value) for key, value in (items.items() if isinstance(items, dict) else items)]
    _keys(key for key, _ in pairs)
    return dict(pairs)


def _set(items: Any = ()) -> set[Any]:
    return set(_keys(items))


def _builtins(module: str) -> dict[str, Call]:
    calls: dict[str, Call] = {"set": _set, "frozenset": lambda items=(): frozenset(_set(items)), "dict": _dict}
    return {f"{module}.{name}": call for name, call in (calls | {"list": list, "tuple": tuple}).items()}


# Containers become plain ones.
_CALLS: dict[str, Call] = {
    **_builtins("builtins"),
    **_builtins("__builtin__"),
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda factory=None, *items: _dict(*items),
    "collections.deque": lambda items=(), length=None: list(items),
    "copyreg._reconstructor": lambda cls, base, state: StandIn(_name(cls)),
    "copy_reg._reconstructor": lambda cls, base, state: StandIn(_name(cls)),
}

_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError, RecursionError, struct.error)
"""What reading a damaged pickle runs into; memory, where something is said to be longer than a machine could hold."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_VALUES = _NUMBERS | _STRINGS | _BYTES
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(
    file: BufferedIOBase,
    where: str,
    calls: Mapping[str, Call] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle from where `file` stands, and leaves it after its end.

    Args:
      file: open for reading.
      where: name of the file, for messages.
      calls: by dotted name, functions that the pickle may call beside those of containers.
      persistent: gives the value of a persistent id.

    Returns:
      Plain values, `Global`s, `StandIn`s, and what `calls` and `persistent` returned.

    Raises:
      UserError: it is damaged.
    """
    machine = _Machine(where, {**_CALLS, **(calls or {})}, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.run(opcode.name, argument)
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where} is damaged, or no pickle: {reason}") from error
    raise UserError(f"{where} is damaged: its pickle has no end")


class _Machine:
    """The stack that a pickle's operations work on."""

    def __init__(self, where: str, calls: Mapping[str, Call], persistent: Callable[[Any], Any] | None):
        self.where, self.calls, self.persistent = where, calls, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self, operation: str, argument: Any) -> None:
        stack = self.stack
        if operation in _VALUES:
            stack.append(argument)
        elif operation in _PUT:
            self.memo[int(argument)] = stack[-1]
        elif operation == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif operation in _GET:
            stack.append(self.memo[int(argument)])
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _EMPTY:
            stack.append(_EMPTY[operation]())
        elif operation in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[operation])]
            stack.append(tuple(reversed(items)))
        elif operation in ("PROTO", "FRAME"):
            pass
        elif hasattr(self, f"do_{operation.lower()}"):
            getattr(self, f"do_{operation.lower()}")(argument)
        else:
            raise UserError(f"{self.where} is refused: its pickle uses {operation}, which no file of weights needs")

    def after_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def do_mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.after_mark()

    def do_pop_mark(self, _: Any) -> None:
        self.after_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def do_tuple(self, _: Any) -> None:
        items = self.after_mark()
        self.stack.append(tuple(items))

    def do_list(self, _: Any) -> None:
        items = self.after_mark()
        self.stack.append(items)

    def do_frozenset(self, _: Any) -> None:
        items = self.after_mark()
        self.stack.append(frozenset(_set(items)))

    def do_dict(self, _: Any) -> None:
        items = self.after_mark()
        self.stack.append(_dict(zip(items[::2], items[1::2], strict=True)))

    def do_append(self, _: Any) -> None:
        item = self.stack.pop()
        _extend(self.stack[-1], [item])

    def do_appends(self, _: Any) -> None:
        items = self.after_mark()
        _extend(self.stack[-1], items)

    def do_additems(self, _: Any) -> None:
        items = self.after_mark()
        _extend(self.stack[-1], items)

    def do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _update(self.stack[-1], [key, value])

    def do_setitems(self, _: Any) -> None:
        items = self.after_mark()
        _update(self.stack[-1], items)

    def do_global(self, argument: str) -> None:
        self.stack.append(Global(".".join(argument.split(" ", 1))))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("the name of a class is not a string")
        self.stack.append(Global(f"{module}.{name}"))

    def do_persid(self, argument: str) -> None:
        self.stack.append(self._persistent(argument))

    def do_binpersid(self, _: Any) -> None:
        self.stack.append(self._persistent(self.stack.pop()))

    def do_reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(apply(self.calls, function, args))

    def do_obj(self, _: Any) -> None:
        cls, *args = self.after_mark()
        self.stack.append(apply(self.calls, cls, tuple(args)))

    def do_inst(self, argument: str) -> None:
        args = self.after_mark()
        self.stack.append(apply(self.calls, Global(".".join(argument.split(" ", 1))), tuple(args)))

    def do_newobj(self, _: Any) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.stack.append(StandIn(_name(cls), tuple(args)))

    def do_newobj_ex(self, _: Any) -> None:
        _, args, cls = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(StandIn(_name(cls), tuple(args)))

    def do_build(self, _: Any) -> None:
        state = self.stack.pop()
        # What a container or a tensor carries beside its contents (versions of modules, flags) is not needed.
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state

    def _persistent(self, identity: Any) -> Any:
        if self.persistent is None:
            raise ValueError("it refers to data outside itself")
        return self.persistent(identity)


def _name(cls: Any) -> str:
    if isinstance(cls, StandIn):  # a class that is made by a call
        return cls.of
    if not isinstance(cls, Global):
        raise TypeError("an object's class is not a name")
    return cls.name


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, StandIn):
        target.entries += items
    elif isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(_keys(items))
    else:
        raise TypeError("it appends to what is not a list")


def _update(target: Any, items: list[Any]) -> None:
    pairs = _dict(zip(items[::2], items[1::2], strict=True))
    if isinstance(target, StandIn):
        target.items.update(pairs)
    elif isinstance(target, dict):
        target.update(pairs)
    else:
        raise TypeError("it sets an item of what is not a dict")
