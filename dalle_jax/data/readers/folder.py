"""A folder of images, with captions beside them or in tables."""

import logging
import os
from collections.abc import Sequence

from dalle_jax import storage
from dalle_jax.data.captions import Captions, captions_from_text
from dalle_jax.data.config import SourceKind
from dalle_jax.data.readers.layouts import first_of, tables_in
from dalle_jax.data.readers.listing import Listing, caption_files, is_image, list_files, list_tables
from dalle_jax.data.readers.own_splits import A_TABLE_EACH, ALL, IN_PATH, Wanted, choose, read_as_one
from dalle_jax.data.readers.packed import PackedCaptions, Texts
from dalle_jax.data.readers.tables import is_table_name
from dalle_jax.data.readers.webdataset_index import IMAGE_SUFFIXES
from dalle_jax.data.records import BadReason, BadSample, LeftOut, Record, Source
from dalle_jax.errors import UserError

_log = logging.getLogger(__name__)


EVERYTHING = Wanted(ALL, None)
"""The splits of a folder as one, and none of them held out."""


class Folder(Source):
    """Images in a folder and below it.

    With tables, their rows are the data set: an image named in several rows has several captions. Without one, every
    image is a sample, and each line of the `.txt` or `.caption` of the same name is a caption.

    A sample's key is the path of its image relative to the folder, as a table writes it.
    """

    def __init__(self, path: str, *, caption_field: str = "", image_field: str = "", wanted: Wanted = EVERYTHING):
        """Lists the folder, and reads its tables.

        Args:
          path: the folder, or a table in it or in a folder of it.
          caption_field: of tables; empty: the usual names.
          image_field: the same.
          wanted: which of the splits that the folder names by tables or lists.

        Raises:
          UserError: where the folder or the images are missing, or a table cannot be read; a field is named and
            there is no table; or a split is named that is not there.
        """
        self._root, table = _root(path)
        files, again, special = storage.walk_links(self._root)
        files.sort()
        endings = caption_files(files)
        first = table or first_of(files)
        tables = [first] if first else [] if endings else tables_in(self._root, files)
        self.name = f"folder {path}"
        if tables:
            more = f" and {len(tables) - 1} more" if len(tables) > 1 else ""
            self.name = f"folder {path} ({tables[0]}{more})"
            listing = list_tables(self._root, files, endings, tables, caption_field, image_field)
            if listing.captions is None and any(listing.endings):
                _log.warning("%s: captions are read from %s", self.name, listing.captions_from)
        elif caption_field or image_field:
            option = "caption_field" if caption_field else "image_field"
            raise UserError(f"config.data.{option} has no effect: there is no table in {path}; leave it out")
        else:
            listing = list_files(files, endings)
        if not listing.files:
            raise UserError(f"{self.name} holds no image (.{', .'.join(IMAGE_SUFFIXES)}){_other_source(files)}")
        listing = self._choose(listing, wanted, path, bool(tables))
        self._files = Texts(listing.files)
        self._keys = self._files if listing.keys == listing.files else Texts(listing.keys)
        self._captions = None if listing.captions is None else PackedCaptions(listing.captions)
        self._endings = listing.endings
        beside = {"links to files that are there under another path": again, "pipes, sockets and devices": special}
        self.left_out = listing.left_out + tuple(
            LeftOut(why, len(what), what[0]) for why, what in beside.items() if what
        )
        self.captions_from = listing.captions_from

    def _choose(self, listing: Listing, wanted: Wanted, path: str, has_tables: bool) -> Listing:
        """The part of a listing that is read, by its splits."""
        self.split_names = () if listing.division is None else listing.division.names
        choice = choose(listing.division, wanted, path, listing.files)
        if choice is not None:
            self.held_out, self.division = choice.held_out, choice.said
            if self.held_out is not None and not wanted.held_out:
                why = f"{self.name} has splits of its own; config.data.split='{ALL}' reads them as one"
                self.without_effect = {"eval_fraction": why}
            return listing.only(choice.kept, choice.left_out)
        if listing.division is not None:
            self.division = f"its splits {', '.join(filter(None, self.split_names))} are read as one"
        else:
            folders = (file.split("/")[0] for file in listing.files if "/" in file)
            self.division = listing.split_column or read_as_one(folders, A_TABLE_EACH if has_tables else IN_PATH)
        return listing

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def __getitem__(self, index: int) -> Record:
        image = self._read(self._files[index])
        texts, fault = self._captions_of(index)
        return Record(image, texts, self._keys[index], captions_fault=fault)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions_of(index)[0]

    def captioned(self) -> int:
        """How many records have captions, or a caption file, which may be empty."""
        if self._captions is None:
            return sum(map(bool, self._endings))
        return self._captions.captioned()

    def _captions_of(self, index: int) -> Captions:
        if self._captions is not None:
            return self._captions[index]
        if not self._endings[index]:
            return (), None
        return captions_from_text(self._read(os.path.splitext(self._files[index])[0] + self._endings[index]))

    def _read(self, file: str) -> bytes:
        try:
            return storage.read(storage.join(self._root, file))
        except OSError as error:
            raise BadSample(BadReason.MISSING, str(error)) from error


def _other_source(files: Sequence[str]) -> str:
    """What to set where a folder holds data of another kind."""
    for ending, kind in ((".tar", SourceKind.WEBDATASET), (".parquet", SourceKind.PARQUET)):
        inside = next((file for file in files if file.endswith(ending)), None)
        if inside is not None:
            return f", but {inside}: set config.data.source={kind.value}, and the path to such files"
    return ""


def _root(path: str) -> tuple[str, str]:
    """The folder that a path names, and the table in it that it names; empty where it names none."""
    root = storage.expanduser(path)
    place = storage.as_path(root) if path else None
    if place is not None and place.is_dir():
        return root, ""
    if place is None or not (is_table_name(path) and place.is_file()):
        raise UserError(f"config.data.path='{path}' is not a folder: name the folder with the images")
    folder, _, table = (root if storage.is_remote(root) else os.path.abspath(root)).rpartition("/")
    if any(map(is_image, storage.walk(folder))):
        return folder, table
    above, _, inner = folder.rpartition("/")  # COCO's tables lie in a folder beside those of its images
    return above, f"{inner}/{table}"
