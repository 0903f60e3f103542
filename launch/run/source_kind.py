"""What a person means by `--data=...`."""

from dalle_jax import storage
from dalle_jax.data.config import SourceKind
from dalle_jax.data.readers.layouts import is_table
from dalle_jax.data.readers.tables import is_table_name
from dalle_jax.errors import UserError


def guess_source(data: str) -> SourceKind:
    """What kind of data a path names."""
    if data == "shapes":
        return SourceKind.SHAPES
    if storage.as_path(data).is_dir():
        names = storage.files_in(data)
        if "dataset_info.json" in names:
            return SourceKind.TFDS
        if "manifest.json" in names:
            return SourceKind.ENCODED
        if any(name.endswith(".tar") for name in names):
            return SourceKind.WEBDATASET
        parquet = any(name.endswith(".parquet") and not is_table(name) for name in names)
        return SourceKind.PARQUET if parquet else SourceKind.FOLDER
    if ".parquet" in data and not is_table(data):
        return SourceKind.PARQUET
    if ".tar" in data:
        return SourceKind.WEBDATASET
    if storage.as_path(data).is_file() and is_table_name(data):
        return SourceKind.FOLDER
    if "/" in data and not _is_tfds_config(data):
        raise UserError(f"--data='{data}' does not exist: name tars, a folder, a text file, a TFDS name or 'shapes'")
    return SourceKind.TFDS


def _is_tfds_config(data: str) -> bool:
    """Whether a name with a slash is a TFDS data set's with a config, `eurosat/rgb` or `eurosat/rgb:2.0.0`."""
    name, _, config = data.partition("/")
    if not name.isidentifier() or "/" in config:
        return False
    import tensorflow_datasets as tfds  # seconds, which other paths do without

    return name in tfds.list_builders(with_community_datasets=False)
