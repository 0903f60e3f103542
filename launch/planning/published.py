"""The plans that `docs/plans.md` shows, and how the page is made."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dalle_jax.config import write_json
from dalle_jax.errors import UserError
from launch.planning.pages import page
from launch.planning.record import read_plan


@dataclasses.dataclass(frozen=True)
class Request:
    """One plan of the page, as it is asked for on the command line."""

    config: str
    topology: str
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the plan in the page's JSON."""
        return " ".join((self.config, self.topology, *self.arguments))


def _requests(config: str, topologies: Sequence[str], *arguments: str) -> tuple[Request, ...]:
    return tuple(Request(config, topology, arguments) for topology in topologies)


CLIPS = (
    *("vit_b32", "vit_b16", "vit_l14", "vit_l14_336"),
    *("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64"),
    *("siglip_b16", "siglip_so400m14", "siglip_so400m14_384"),
)
"""Presets of `configs/clip.py`: all published models."""

PUBLISHED = (
    *_requests("configs/decoder_12b.py", ("v5e-256", "v6e-256", "v4-256", "v5p-128", "2xv5e-256")),
    *_requests("configs/decoder_12b.py", ("v5e-256", "v5p-128"), "--mode=generate", "--num_samples=512"),
    *_requests("configs/decoder_1b.py", ("v5e-32", "v6e-16")),
    *_requests("configs/codec_dalle.py", ("v5e-64",)),
    *(request for preset in CLIPS for request in _requests(f"configs/clip.py:{preset}", ("v5e-256",))),
)


def write_page(out: Path) -> None:
    """Makes the plans that `out`'s JSON does not hold yet, each in a process of its own, then the page.

    Args:
      out: the page; beside it the plans are kept as JSON, so that a stopped run goes on and a single plan can be made
        anew by taking it out.

    Raises:
      UserError: a plan could not be made.
    """
    store = out.with_suffix(".json")
    plans = json.loads(store.read_text()) if store.exists() else {}
    for request in PUBLISHED:
        if request.name not in plans:
            print(request.name, file=sys.stderr, flush=True)
            plans[request.name] = _make(request)
            write_json(store, plans)
    out.write_text(render(plans))


def render(plans: dict) -> str:
    """The page of plans that were read from JSON, in the order of `PUBLISHED`."""
    return page([read_plan(plans[request.name], request.name) for request in PUBLISHED])


def _make(request: Request) -> dict:
    command = [sys.executable, "-m", "launch.plan", f"--config={request.config}", f"--topology={request.topology}"]
    done = subprocess.run([*command, *request.arguments, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{request.name}: the plan ended with code {done.returncode}; what it printed is above")
    (plan,) = json.loads(done.stdout)
    return plan
