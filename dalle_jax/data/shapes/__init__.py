"""The embedded data set: drawn scenes (`scenes`), their records (`source`), and what reads images back (`judge`)."""

from dalle_jax.data.config import ShapesConfig
from dalle_jax.data.records import Source


def source(config: ShapesConfig, split: str) -> Source:
    """Opens a split of the drawn scenes, drawing the data set first where it is not in the cache folder yet.

    Args:
      config: which variant.
      split: `train`, `eval` or `unseen`.

    Raises:
      UserError: for an unknown split, sizes that cannot be drawn, or a folder that cannot be written.
    """
    # TFDS takes a second to import; the scenes and the judge do without.
    from dalle_jax.data.shapes.prepared import open_split

    return open_split(config, split)
