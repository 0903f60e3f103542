"""What is done to captions before they are split: mojibake, entities and spaces mended, case and punctuation."""

import enum
import html
import string

import ftfy


class Cleaning(enum.Enum):
    """How captions are cleaned, under open_clip's names."""

    LOWER = "lower"  # CLIP's
    CANONICALIZE = "canonicalize"  # SigLIP's
    WHITESPACE = "whitespace"  # nothing but spaces: upper case stays

    def __call__(self, text: str) -> str:
        text = clean(text)
        if self is Cleaning.LOWER:
            return text.lower()
        return canonicalize(text) if self is Cleaning.CANONICALIZE else text


def clean(text: str) -> str:
    """Mends mojibake, resolves HTML entities twice, and makes all white space single spaces, as the release does."""
    # Of plain ASCII ftfy changes nothing but entities and control characters, and takes ten times as long to say so.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def canonicalize(text: str) -> str:
    """Lower case without ASCII punctuation, as SigLIP reads it; an underscore is a space."""
    text = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
