"""Whether all pixels of a JPEG are there that lacks the marker at its end, as cameras and cut downloads leave some."""

import io
import random

import numpy as np
from PIL import Image

END = b"\xff\xd9"

_SEQUENTIAL, _OTHER_FRAMES = (0xC0, 0xC1), (0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_RESTARTS, _SCAN = 0xDD, 0xDA
_random = random.Random(0)
_FILLERS = [_random.randbytes(64).replace(b"\xff", b"\xfe") for _ in range(16)]  # without a marker in them


def lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG that cannot be decoded to its end would be whole with `END` behind it.

    A decoder makes up what is missing from whatever stands there. So the file is whole where it gives the same pixels
    with each of several fillings behind it. It says nothing of files of several scans, of which the last ones may be
    missing, nor of files with restart markers, to which a decoder skips: these are never called whole.

    Args:
      data: a file without application segments (`bare_image`), of a size that may be unpacked.
    """
    start = _only_scan(data)
    if start is None or END in data[start:]:
        return False
    data = data.removesuffix(b"\xff")  # half of the marker
    try:
        first = _pixels(data + _FILLERS[0] + END)
        return all(np.array_equal(first, _pixels(data + filler + END)) for filler in _FILLERS[1:])
    except Exception:  # of many kinds, as Pillow's readers raise them
        return False


def _only_scan(data: bytes) -> int | None:
    """Where the scan of a JPEG begins; None where there may be others, or marks in it."""
    position, components = 2, 0
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker, end = data[position + 1], position + 2 + int.from_bytes(data[position + 2 : position + 4])
        body = data[position + 4 : end]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _SCAN:
            return end if components and body[:1] == bytes([components]) else None
        if marker in _SEQUENTIAL and len(body) > 5:
            components = body[5]
        elif marker in _OTHER_FRAMES or marker == _RESTARTS and any(body):
            return None
        position = end
    return None


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image)
