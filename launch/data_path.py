"""What a person means by `--data=...`."""

import os

from dalle_jax.data.config import SourceKind
from dalle_jax.errors import UserError


def guess_source(data: str) -> SourceKind:
    """What kind of data a path names."""
    if data == "shapes":
        return SourceKind.SHAPES
    if os.path.isdir(data):
        names = os.listdir(data)
        if "dataset_info.json" in names:
            return SourceKind.TFDS
        return SourceKind.WEBDATASET if any(name.endswith(".tar") for name in names) else SourceKind.FOLDER
    if ".tar" in data:
        return SourceKind.WEBDATASET
    if os.sep in data:
        raise UserError(f"--data='{data}' does not exist: name tars, a folder, a text file, a TFDS name or 'shapes'")
    return SourceKind.TFDS
