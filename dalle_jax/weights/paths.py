"""Where weights are read from: this machine's files, and what is said of paths that are none."""

import os
import re

from dalle_jax.errors import UserError
from dalle_jax.storage import is_remote, path_text

_ON_THE_HUB = re.compile(r"(?:hf://|hf-hub:|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?([^/]+/[^/@]+)")
_LIKE_A_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""`owner/name`, which may be a path too."""


def local_path(path: str | os.PathLike, hub_name: str | None = None) -> str:
    """A path as a string, `~` replaced, where it is one of this machine's.

    Args:
      path: local; `~` is the home folder.
      hub_name: what the message says to fetch, where the caller knows it: `owner/name`.

    Raises:
      UserError: it is not there, in a bucket, a URL, or a name of Hugging Face's hub; the message says how to fetch it.
    """
    text = os.path.expanduser(path_text(path))
    if os.path.exists(text):
        return text
    named = _ON_THE_HUB.match(text)
    if named:
        raise UserError(f"{text} is not a path: weights are not downloaded here; {_fetch(named[1])}")
    if is_remote(text):
        raise UserError(f"{text}: weights are read from local files alone; copy it to this machine")
    like_a_name = _LIKE_A_NAME.fullmatch(text)
    name = hub_name or (text if like_a_name and not os.path.isdir(os.path.dirname(text)) else "OWNER/NAME")
    raise UserError(f"{text} does not exist; weights are not downloaded here: {_fetch(name)}")


def _fetch(name: str) -> str:
    return f"hf download {name} --local-dir FOLDER, and give FOLDER"


NOT_DOWNLOADED = f"weights are not downloaded here: {_fetch('OWNER/NAME')}"
"""What is said of a folder whose weights were never fetched."""
