"""Text in files that strangers wrote: which encodings are read, and what ends a line."""

import re

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def decode_text(data: bytes, errors: str = "strict") -> str:
    """A text in UTF-8, with its mark or without, or in UTF-16 with its mark.

    Args:
      data: of the file.
      errors: what becomes of bytes that are not UTF-8, as `bytes.decode` takes it.

    Raises:
      UnicodeDecodeError: it is none of these. Zero bytes are none: they are what UTF-16 without a mark and UTF-32 hold,
        and what is left of a file that was lost.
    """
    if data.startswith(_UTF_16):
        text = data.decode("utf-16", "surrogatepass" if errors == "surrogateescape" else errors)
        if "\0" in text:
            raise UnicodeDecodeError("utf-16", data, 0, len(data), "zero byte")
        return text
    if b"\0" in data:
        raise UnicodeDecodeError("utf-8", data, data.index(b"\0"), data.index(b"\0") + 1, "zero byte")
    return data.decode("utf-8-sig", errors)


def split_lines(text: str, most: int = 0) -> list[str]:
    """The lines of a text, which CR, LF or both end; after `most` of them, where it is not 0, the rest as one.

    `str.splitlines` cuts at U+2028, form feeds and six other characters too; captions from web pages hold those.
    """
    return re.split(r"\r\n|\r|\n", text, maxsplit=most)
