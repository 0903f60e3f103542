"""The preview of a CLIP that trains."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def similarity_sheet(
    images: UInt8[np.ndarray, "B height width 3"], probabilities: Float[np.ndarray, "B B"], cell: int = 48
) -> UInt8[np.ndarray, "side side 3"]:
    """Draws which caption each image takes to: a trained model's sheet has a bright diagonal.

    Args:
      images: the images, down the left side and, standing for their captions, along the top.
      probabilities: row i: of each caption, given image i.
      cell: pixels a side of a square.

    Returns:
      A square sheet of (B + 1) x (B + 1) cells.
    """
    count = len(images)
    levels = np.zeros((count + 1, count + 1), np.uint8)
    levels[1:, 1:] = np.round(255 * np.clip(probabilities, 0, 1))
    sheet = np.repeat(levels.repeat(cell, axis=0).repeat(cell, axis=1)[..., None], 3, axis=-1)
    for i, image in enumerate(images, start=1):
        small = np.asarray(Image.fromarray(image).resize((cell, cell), Image.Resampling.BOX))
        sheet[i * cell : (i + 1) * cell, :cell] = small
        sheet[:cell, i * cell : (i + 1) * cell] = small
    return sheet
