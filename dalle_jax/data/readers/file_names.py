"""From the names that tables give to the files that lie in a folder."""

import functools
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from dalle_jax import storage
from dalle_jax.errors import UserError


class Names:
    """The files of a folder, by names as people write them.

    A name that is not a file's own may have backslashes, spaces round it, letters of another case, accents composed
    otherwise, or no extension, as long as one file alone could be meant.
    """

    def __init__(self, root: str, files: Sequence[str]):
        """Args:
        root: the folder.
        files: in it and below it, relative to it, with forward slashes.
        """
        self._root, self._files, self._exact = root, files, set(files)
        self._elsewhere = functools.cache(lambda folder: storage.files_in(folder))

    def find(self, name: str, base: str = "") -> str | None:
        """The file that a name means, relative to the root, or as it is written where it leads out of it; or None.

        Args:
          name: relative to `base`, or absolute.
          base: a folder below the root.
        """
        path = posixpath.normpath(posixpath.join(base, name))
        if path in self._exact:
            return path
        if path.startswith(("/", "../")):
            folder, _, file = storage.join(self._root, path).rpartition("/")
            return path if file in self._elsewhere(folder) else None
        loose = _loose(posixpath.join(base, name))
        return self._whole.get(loose) or self._without_extension.get(loose)

    def base_of(self, names: Sequence[str], preferred: Iterable[str]) -> str | None:
        """The folder below the root that a table's names start from; None: no name is a file's, from anywhere.

        Args:
          names: some of the table's.
          preferred: folders, of which the first counts where any name is found.

        Raises:
          UserError: several other folders hold files of these names.
        """
        for base in preferred:
            if any(self.find(name, base) for name in names):
                return base
        found = {base: sum(self.find(name, base) is not None for name in names) for base in self.folders}
        most = max(found.values(), default=0)
        best = [base for base, count in found.items() if count == most]
        if most and len(best) > 1:
            raise UserError(
                f"'{names[0]}' and others may be images in {best[0]} or in {best[1]} of {self._root}: write the folder "
                "into the names of the table"
            )
        return best[0] if most else None

    @functools.cached_property
    def folders(self) -> list[str]:
        """Below the root, those that hold files."""
        return sorted({posixpath.dirname(file) for file in self._files} - {""})

    @functools.cached_property
    def _whole(self) -> dict[str, str | None]:
        return _unique(self._files, _loose)

    @functools.cached_property
    def _without_extension(self) -> dict[str, str | None]:
        return _unique(self._files, lambda file: os.path.splitext(_loose(file))[0])


def _loose(path: str) -> str:
    """A form in which names are equal that people take for the same."""
    parts = [part.strip() for part in path.replace("\\", "/").split("/")]
    return unicodedata.normalize("NFC", posixpath.normpath("/".join(parts))).lower()


def _unique(files: Sequence[str], form: Callable[[str], str]) -> dict[str, str | None]:
    """Files by a form of their names; None where several have it."""
    found: dict[str, str | None] = {}
    for file in files:
        key = form(file)
        found[key] = None if key in found else file
    return found
