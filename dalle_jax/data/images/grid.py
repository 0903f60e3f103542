"""Many images on one sheet, and sheets as files."""

import io

import numpy as np
from etils import epath
from PIL import Image

from dalle_jax.storage import write_whole


def image_grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Lays images out row by row on white.

    Args:
      images: uint8 [n, height, width, 3].
      columns: images a row; the last row may be shorter.
      gap: white pixels between images and around them.

    Returns:
      uint8 [sheet height, sheet width, 3].
    """
    count, height, width, _ = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(np.asarray(images)):
        top, left = (gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap))
        sheet[top : top + height, left : left + width] = image
    return sheet


def save_png(image: np.ndarray, path: epath.PathLike) -> None:
    """Writes uint8 [height, width, 3] as PNG, locally or into a bucket; folders are made."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, format="PNG")
    write_whole(path, encoded.getvalue())
