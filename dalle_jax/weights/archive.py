"""Zip archives as PyTorch writes them: members that are stored, not compressed, so that they can be read in place."""

import dataclasses
import struct
import zipfile
from io import BufferedReader

from dalle_jax.errors import UserError

ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


@dataclasses.dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in the archive's file."""

    offset: int
    size: int
    stored: bool
    """False: compressed, and so of no use here."""


def members(path: str) -> dict[str, Member]:
    """The members of an archive by name. Nothing is extracted.

    Raises:
      UserError: the archive is truncated or damaged, a name leads out of it, or two members share bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            infos = archive.infolist()
            found = {info.filename: _member(path, file, info) for info in infos}
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise UserError(f"{path} is a truncated or damaged archive ({error}): fetch it again") from error
    if len(found) < len(infos):
        raise UserError(f"{path} is refused: two members of the archive have one name")
    _check_apart(path, found)
    return found


def _member(path: str, file: BufferedReader, info: zipfile.ZipInfo) -> Member:
    name = info.filename
    if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in name.split("/"):
        raise UserError(f"{path} is refused: the member '{name}' leads out of the archive")
    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    name_length, extra_length = header[-2:]
    if header[0] != ZIP_MAGIC or file.read(name_length) != name.encode():
        raise UserError(f"{path} is damaged: the member '{name}' is not where the archive's index says")
    if info.flag_bits & 1:
        raise UserError(f"{path} is refused: the member '{name}' is encrypted")
    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    file.seek(0, 2)
    if offset + info.compress_size > file.tell():
        raise UserError(f"{path} is truncated: the member '{name}' ends after the file")
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    return Member(offset, info.compress_size, stored)


def _check_apart(path: str, found: dict[str, Member]) -> None:
    ordered = sorted((member.offset, member.offset + member.size, name) for name, member in found.items())
    for (_, end, name), (start, _, other) in zip(ordered, ordered[1:], strict=False):
        if start < end:
            raise UserError(f"{path} is refused: the members '{name}' and '{other}' overlap")
