"""What a run remembers of its data, so that one that goes on with other data says so."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from dalle_jax.config import read_json, write_json
from dalle_jax.data.mixture import parts_of
from dalle_jax.data.records import Source
from dalle_jax.errors import UserError

FILE = "data.json"
"""In the work directory: by split, and by part of a mixture, what `fingerprints` gives and since when."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Of the samples of one split, or one part of it."""

    samples: int
    fingerprint: str
    """See `Source.fingerprint`."""


def fingerprints(sources: Mapping[str, Source]) -> dict[str, Fingerprint]:
    """Of each split, or of each part of a split of a mixture (`train/web`)."""
    found = {}
    for split, source in sources.items():
        for name, part in zip(source.part_names or ("",), parts_of(source), strict=True):
            found[f"{split}/{name}" if name else split] = Fingerprint(len(part), part.fingerprint())
    return found


def keep_data(workdir: epath.Path, now: Mapping[str, Fingerprint]) -> None:
    """Writes `W/data.json` where it does not say the same; logs a warning where it says otherwise.

    Call it on process 0 alone. Other data are no error: a person may have brought more.
    """
    then, kept, changes = _read(workdir), {}, []
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for name, found in now.items():
        before = then.get(name)
        facts = dataclasses.asdict(found)
        if before is not None and before | facts == before:
            kept[name] = before
            continue
        kept[name] = facts | {"since": time}
        if before is not None:
            changes.append(_change(name, before, found))
    changes += [f"{name} is no longer read" for name in then if name not in now]
    if changes:
        logging.warning(
            "the data of %s are not what they were when it last started (%s): %s; samples may come in another order, "
            "and some that were trained on may be held out", workdir, FILE, "; ".join(changes),
        )  # fmt: skip
    if kept != then:
        write_json(workdir / FILE, kept)


def _change(name: str, before: Mapping[str, Any], now: Fingerprint) -> str:
    fingerprint = f"fingerprint {before.get('fingerprint')} then, {now.fingerprint} now"
    if before.get("samples") == now.samples:
        return f"{name} has {now.samples:,} samples as before, but others ({fingerprint})"
    return f"{name} has {now.samples:,} samples instead of {before.get('samples')} ({fingerprint})"


def _read(workdir: epath.Path) -> dict[str, dict[str, Any]]:
    """What the file says; nothing where there is none, as in a run of earlier code, or it is damaged."""
    try:
        there = read_json(workdir / FILE)
    except UserError:
        return {}
    return {name: facts for name, facts in there.items() if isinstance(facts, dict)} if isinstance(there, dict) else {}
