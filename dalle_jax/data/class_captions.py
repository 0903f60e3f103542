"""Captions made from the names of classes, for data sets that have labels and no captions."""

import dataclasses
import re
from collections.abc import Sequence

from dalle_jax.data.records import Record, Source
from dalle_jax.errors import UserError


class ClassCaptions(Source):
    """The records of a source; those without a caption have one for each template."""

    def __init__(self, source: Source, templates: Sequence[str], names: Sequence[str] = ()):
        """Args:
        source: with labels.
        templates: captions with `{}` where the name goes; an `a` before it becomes `an` where the name asks for it.
        names: of the classes; of none: as the source calls them.

        Raises:
          UserError: a template has no `{}`.
        """
        for template in templates:
            if "{}" not in template:
                raise UserError(f"config.data.caption_templates: '{template}' has no '{{}}' for the class's name")
        self._source, self._templates = source, tuple(templates)
        self.name = f"{source.name} with config.data.caption_templates"
        self.has_labels, self.class_names, self.left_out = source.has_labels, source.class_names, source.left_out
        self.held_out, self.division, self.without_effect = source.held_out, source.division, source.without_effect
        self._captions = [tuple(fill(template, name) for template in templates) for name in names or source.class_names]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        if record.captions or record.captions_fault:
            return record
        return dataclasses.replace(record, captions=self._of(record.label))

    def captions(self, index: int) -> tuple[str, ...]:
        """The record's captions, and those of its class too where it has some of its own that cannot be read."""
        return self._source.captions(index) or self._of(self._source.label(index))

    def _of(self, label: int | None) -> tuple[str, ...]:
        return self._captions[label] if label is not None and 0 <= label < len(self._captions) else ()

    def key(self, index: int) -> str:
        return self._source.key(index)

    def key_hashes(self):
        return self._source.key_hashes()

    def captioned(self) -> int | None:
        return len(self) if self.has_labels and self._captions else self._source.captioned()


def fill(template: str, name: str) -> str:
    """A template with a class's name in it: underscores are spaces, and `a {}` before a vowel is `an ...`."""
    name = name.replace("_", " ")
    if name[:1].lower() in tuple("aeiou"):
        template = re.sub(r"\b([Aa]) \{\}", r"\1n {}", template)
    return template.replace("{}", name)
