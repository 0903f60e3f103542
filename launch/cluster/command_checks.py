"""What the command of a run says, read by those that start it elsewhere, and refused before anything is rented.

Needs nothing but Python, as `launch.cluster.accelerators`: the config itself is not read.
"""

import re
import sys
from collections.abc import Sequence

from dalle_jax.errors import UserError, run_main

ON_THE_CONFIGS_MESH = ("launch.train", "launch.efficiency")
"""Scripts that refuse another number of slices than the config's; the other ones take those that are there."""


def option(command: Sequence[str], name: str) -> str | None:
    """The value of `--name=VALUE` or `--name VALUE`, the last one given."""
    found = None
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        given, equals, value = argument.partition("=")
        if given in (f"--{name}", f"-{name}"):
            found = value if equals else following
    return found


def check_folders(command: Sequence[str]) -> None:
    """Raises:
    UserError: the run writes where only its own machine sees it, and loses it with that machine.
    """
    for name in ("workdir", "out"):
        folder = option(command, name)
        if folder is not None and not re.match("gs://.|/mnt/.", folder):
            raise UserError(
                f"--{name}={folder} is on the machine and lost with it: write to gs://BUCKET/..., or under /mnt where "
                "all machines mount it"
            )


def check_slices(command: Sequence[str], slices: int) -> None:
    """Raises:
    UserError: the run's mesh is for another number of TPU slices than it gets.
    """
    if not any(word.removesuffix(".py").replace("/", ".").endswith(ON_THE_CONFIGS_MESH) for word in command):
        return
    said = option(command, "config.mesh.slices")
    if said is None and slices > 1:
        raise UserError(
            f"--slices={slices}, but the command does not say so: add --config.mesh.slices={slices} to it, which "
            "lays the mesh over them"
        )
    if said is not None and said != str(slices):
        raise UserError(f"--slices={slices}, but the command says --config.mesh.slices={said}: give both one number")


def main() -> None:
    """Checks `SLICES COMMAND...`, for `launch/tpu_vm.sh`."""
    slices, *command = sys.argv[1:]
    check_folders(command)
    check_slices(command, int(slices))


if __name__ == "__main__":
    run_main(main)
