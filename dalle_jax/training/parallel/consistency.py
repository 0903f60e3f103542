"""Do all processes of a run hold the same code, the same config, the same data? Asked before they depend on it."""

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dalle_jax.code_version import code_version
from dalle_jax.config import differing_keys, to_json
from dalle_jax.errors import UserError
from dalle_jax.training.parallel.processes import gather

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "sentencepiece", "pillow")
"""What may change a run's numbers or its files."""


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Compares facts between processes. All must call it, with facts of the same names.

    Args:
      facts: by a name that fits into "another NAME"; each a JSON value, a dataclass, or a nest of dicts of them.

    Raises:
      UserError: on every process: names those whose fact is not that of most, their hosts, and what differs.
    """
    if jax.process_count() == 1:
        return
    plain = {name: json.loads(to_json(fact)) for name, fact in facts.items()}
    mine = {name: hashlib.sha256(to_json(fact).encode()).hexdigest() for name, fact in plain.items()}
    everyone = gather(mine | {"host": socket.gethostname()})
    for name in facts:
        odd = _odd_ones([process[name] for process in everyone])
        if not odd:
            continue
        reference = next(i for i in range(len(everyone)) if i not in odd)
        values = gather(plain[name])
        who = ", ".join(f"{i} ({everyone[i]['host']})" for i in odd[:5])
        raise UserError(
            f"process {who} has another {name} than process {reference} ({everyone[reference]['host']}): "
            f"{_differences(values[odd[0]], values[reference])}; give all processes the same code, command and data"
        )


def _odd_ones(values: Sequence[str]) -> list[int]:
    """Those that do not hold what most hold; of two equally frequent values that of the first process is right."""
    counts = Counter(values)
    usual = max(counts, key=lambda value: (counts[value], value == values[0]))
    return [i for i, value in enumerate(values) if value != usual]


def _differences(theirs: Any, ours: Any) -> str:
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return f"{_short(theirs)} there, {_short(ours)} here"
    keys = differing_keys(theirs, ours)
    shown = [f"{key} ({_short(_get(theirs, key))} there, {_short(_get(ours, key))} here)" for key in keys[:3]]
    return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _get(value: Any, key: str) -> Any:
    """The value at a dotted key; keys may hold dots themselves."""
    if not isinstance(value, dict):
        return "absent"
    if key in value:
        return value[key]
    head = next((name for name in value if key.startswith(f"{name}.")), None)
    return "absent" if head is None else _get(value[head], key[len(head) + 1 :])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def code_facts() -> dict[str, str]:
    """The code as it runs here: commit, a digest of all source files as they lie there, versions of libraries."""
    root = Path(__file__).parents[3]
    digest = hashlib.sha256()
    for package in ("dalle_jax", "clip_jax", "launch"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"commit": code_version(), "source": digest.hexdigest()[:12]} | versions


def command_facts(arguments: Sequence[str]) -> dict[str, str]:
    """A command line's options by name."""
    facts: dict[str, str] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        facts[name] = f"{facts[name]}, {value}" if name in facts else value
    return facts
