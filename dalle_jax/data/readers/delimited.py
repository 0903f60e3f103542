"""Rows of text whose fields a comma, a tab, a semicolon or a bar parts; a fault ends in an error that names the line.

A quote that nobody closes would swallow the rows after it, and an unquoted comma would shift fields: neither is guessed
at.
"""

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from dalle_jax.data.readers.webdataset_index import IMAGE_SUFFIXES
from dalle_jax.data.rows import row_of
from dalle_jax.errors import UserError
from dalle_jax.text_files import split_lines

_DELIMITERS = (",", "\t", ";", "|")


def rows(path: str, text: str, image_fields: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows below the header, each with the number of its first line.

    Two columns without a header, a file name and a caption in either order, are read as `file_name` and `caption`, and
    a URL and a caption as `url` and `caption`. A row of fewer fields than the header lacks the last of them. Of columns
    of one name a row has all (`row_of`).

    Args:
      path: of the table, for messages.
      text: of it; bytes that are no text in it as surrogates.
      image_fields: names, in lower case, by which the header is told from other lines.

    Raises:
      UserError: naming the line: a quote is not closed, or a row has more fields than the header.
    """
    delimiter = _delimiter(text, image_fields)
    header: list[str] = []
    for line, cells, lines in _records(path, text, delimiter):
        if not header:
            header = [cell.strip() for cell in cells]
            found = next((like for like in (_looks_like_image, is_url) if sum(map(like, header)) == 1), None)
            if found is None or len(header) != 2:
                continue
            name = "url" if found is is_url else "file_name"
            header = [name, "caption"] if found(header[0]) else ["caption", name]
        if any(cell.strip() for cell in cells[len(header) :]):
            raise UserError(
                f"{path}, line {line} has {len(cells)} fields, and the header has {len(header)}: put a text that holds "
                f"'{delimiter}' between quotes"
            )
        if lines > 1:
            _check_inside(path, line, cells, header, delimiter, image_fields)
        yield line, row_of(zip(header, cells, strict=False))


def _delimiter(text: str, image_fields: Collection[str]) -> str:
    """The one under which the header names the images; else the one that cuts it into most fields."""
    header = split_lines(text.lstrip(), 1)[0]

    def score(delimiter: str) -> tuple[bool, int]:
        cells = [cell.strip().strip('"').lower() for cell in header.split(delimiter)]
        return any(cell in image_fields or _looks_like_image(cell) or is_url(cell) for cell in cells), len(cells)

    return max(_DELIMITERS, key=score)


def _records(path: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str], int]]:
    """The first line, the fields, and the number of lines of every record that is not blank."""
    plain = delimiter == "\t" and _quotes_nothing(text)
    quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    reader = csv.reader(_with_ends(text), delimiter=delimiter, strict=True, quoting=quoting)
    before = 0
    try:
        for cells in reader:
            first, lines, before = before + 1, reader.line_num - before, reader.line_num
            if any(cell.strip() for cell in cells):
                yield first, [_unquoted(cell) for cell in cells] if plain else cells, lines
    except csv.Error as error:
        raise UserError(f"{path}, line {before + 1} is not CSV ({error}): is a quote not closed?") from error


def _with_ends(text: str) -> Iterator[str]:
    """The lines of a text, each with what ends it. (An `io.StringIO` would take four bytes a character.)"""
    return (line[0] for line in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))


def _quotes_nothing(text: str) -> bool:
    """Whether a line of a table with tabs is a row: every line has its fields, and quotes stand as they happen to."""
    if len({line.count("\t") for line in split_lines(text) if line.strip()}) > 1:
        return False
    try:
        for _ in csv.reader(_with_ends(text), delimiter="\t", strict=True):
            pass
    except csv.Error:
        return True
    return False


def _unquoted(cell: str) -> str:
    """A field that is quoted as CSV has it, without its quotes."""
    return cell[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', cell) else cell


def _check_inside(
    path: str, line: int, cells: Sequence[str], header: Sequence[str], delimiter: str, image_fields: Collection[str]
) -> None:
    """Refuses a quoted text that holds other rows: the quote that opens it was meant to close in its own row."""
    column = next((i for i, name in enumerate(header) if name.lower() in image_fields), len(cells))
    own = cells[column] if column < len(cells) else ""
    for cell in cells:
        for inner in split_lines(cell) if "\n" in cell or "\r" in cell else ():
            parts = next(csv.reader([inner], delimiter=delimiter), [])
            if len(parts) == len(header) and _is_named_alike(parts[column : column + 1], own):
                raise UserError(
                    f"{path}, line {line} is not CSV: a quote that opens there holds whole rows, such as "
                    f"'{inner[:40]}': is a quote not closed?"
                )


def _is_named_alike(found: Sequence[str], own: str) -> bool:
    """Whether a field holds the name of an image: by its extension, or by its digits where names have none."""
    form = re.sub(r"\d+", "0", own.strip())
    alike = "0" in form and [re.sub(r"\d+", "0", name.strip()) for name in found] == [form]
    return alike or any(map(_looks_like_image, found))


def is_url(text: str) -> bool:
    """Whether a field is a URL and nothing else."""
    return re.fullmatch(r"\w+://\S+", text.strip()) is not None


def _looks_like_image(text: str) -> bool:
    return "://" not in text and text.strip().lower().endswith(tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES))
