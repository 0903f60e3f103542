"""Images in one folder for each class."""

import dataclasses
from collections.abc import Iterable

from dalle_jax.data.readers.folder import EVERYTHING, Folder
from dalle_jax.data.readers.own_splits import Wanted, kind_of
from dalle_jax.data.records import Record
from dalle_jax.errors import UserError


class ClassFolder(Folder):
    """A folder whose folders are the classes, in the order of `in_class_order`; images may lie deeper."""

    def __init__(self, path: str, *, caption_field: str = "", image_field: str = "", wanted: Wanted = EVERYTHING):
        """Lists the folder; see `Folder`.

        Raises:
          UserError: where there is no image, or one that lies in no class's folder, or the folders are splits.
        """
        super().__init__(path, caption_field=caption_field, image_field=image_field, wanted=wanted)
        self.name = f"folder by class {path}"
        outside = next((file for file in self._files if "/" not in file), None)
        if outside is not None:
            raise UserError(
                f"'{outside}' lies in {path} itself: give each class a folder with its name, and its images in it"
            )
        names = {file.split("/")[0] for file in self._files}
        if len(names) > 1 and all(map(kind_of, names)):
            raise UserError(
                f"the folders of {path} are splits ({', '.join(sorted(names))}) and no classes: write "
                f"config.data.path='{path}/{{split}}', and say which is held out with config.data.eval_split"
            )
        self.class_names = in_class_order(names)
        self.has_labels = True

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        return dataclasses.replace(record, label=self.label(index))

    def label(self, index: int) -> int:
        return self.class_names.index(self._files[index].split("/")[0])


def in_class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, sorted; numbers where all of them are numbers, so that 10 comes after 9."""
    names = sorted(names)
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=int)
    return tuple(names)
