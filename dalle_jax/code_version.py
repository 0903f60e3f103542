"""Which code this is: what runs, results and files of tokens say of what made them."""

import subprocess
from importlib import metadata
from pathlib import Path


def code_version() -> str:
    """The commit of the code, `-dirty` where files differ from it; the package's version outside a clone."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        try:
            return metadata.version("dalle-jax")
        except metadata.PackageNotFoundError:
            return "unknown"
