"""What often stands where a downloaded file should: known by its first bytes, and called what it is."""

import os

from dalle_jax.errors import UserError

GIT_LFS = b"version https://git-lfs"
"""What a pointer of Git LFS begins with."""

NOT_FETCHED: tuple[tuple[bytes, str], ...] = (
    (
        GIT_LFS,
        "is a pointer of Git LFS, not the file that it points to: fetch that with `git lfs pull`",
    ),
    (b"<!doctype html", "is an HTML page, such as a server sends in place of a file: download it anew"),
    (b"<html", "is an HTML page, such as a server sends in place of a file: download it anew"),
    (b"<?xml", "is an XML document, such as a server sends in place of a file: download it anew"),
)
"""First bytes, in lower case where they are text, and the end of a sentence whose subject is the file."""


class NotFetched(UserError):
    """Something else stands where a file should."""


def check_fetched(content: bytes, path: str | os.PathLike) -> None:
    """Refuses what came in place of a download.

    Args:
      content: the first bytes of the file, or all of it.
      path: of it, for the message.

    Raises:
      NotFetched: it is a pointer of Git LFS, or a page.
    """
    told = told_by(content[:512], NOT_FETCHED)
    if told:
        raise NotFetched(f"{os.fspath(path)} {told}")


def told_by(head: bytes, beginnings: tuple[tuple[bytes, str], ...]) -> str | None:
    """What is said of a file that begins so; None where nothing is."""
    text = head.lstrip().lower()
    return next((what for start, what in beginnings if head.startswith(start) or text.startswith(start)), None)
