"""What was read: the few lines that a person is told at the start of a run, so that no loss goes unheard."""

import dataclasses
from collections.abc import Mapping

from dalle_jax.data.config import DataConfig, HeldOutBy, SourceConfig, SourceKind
from dalle_jax.data.left_out import in_words
from dalle_jax.data.mixture import parts_of
from dalle_jax.data.records import LeftOut, Source
from dalle_jax.data.source_types import source_type
from dalle_jax.data.sources import EVAL, whole_of


@dataclasses.dataclass(frozen=True)
class Account:
    """What was read of one data set, or of one part of a mixture."""

    part: str
    """Of a mixture; empty: there is none."""
    names: tuple[str, ...]
    """Of what was opened: one, or two where what is held out is a split of its own."""
    samples: int
    """All of them, held out or not."""
    has_images: bool
    """Whether they are images; else they are tokens."""
    captioned: int | None
    """How many have captions, by tables and names of files; None: not counted, as it would take reading them."""
    held_out: int
    rule: str
    """By which they are held out, in words; empty: none are."""
    left_out: tuple[LeftOut, ...]
    divisions: tuple[str, ...] = ()
    """What splits of the data's own were used as."""

    def lines(self) -> list[str]:
        """One line, one for splits of the data's own, and one for each reason for which something was left out."""
        head = f"data, part '{self.part}'" if self.part else "data"
        captions = "captions not counted" if self.captioned is None else f"{self.captioned:,} with captions"
        share = f"{self.held_out:,} held out ({self.held_out / self.samples:.2%}; {self.rule})"
        return [
            f"{head}: {self.samples:,} {'images' if self.has_images else 'encoded images'}, {captions}, "
            f"{share if self.rule else 'none held out'}: {' and '.join(self.names)}",
            *(f"{head}: {said}" for said in self.divisions),
            *(f"{head}: left out: {text}" for text in in_words(self.left_out)),
        ]


def accounts(config: SourceConfig, sources: Mapping[str, Source]) -> tuple[Account, ...]:
    """An account for each part of a mixture, or one of the data.

    Args:
      config: which data.
      sources: what `open_splits` opened for it, or some of that.
    """
    parts = config.mixture if isinstance(config, DataConfig) else ()
    if not parts:
        return (_account("", config, sources),)
    found: dict[str, dict[str, Source]] = {}
    for split, source in sources.items():
        for name, part in zip(source.part_names, parts_of(source), strict=True):
            found.setdefault(name, {})[split] = part
    return tuple(_account(part.name, part, found[part.name]) for part in parts)


def in_lines(config: SourceConfig, sources: Mapping[str, Source]) -> str:
    """`accounts` as text."""
    return "\n".join(line for account in accounts(config, sources) for line in account.lines())


def _account(part: str, config: SourceConfig, splits: Mapping[str, Source]) -> Account:
    wholes = list({id(whole): whole for whole in map(whole_of, splits.values())}.values())
    captioned = [whole.captioned() for whole in wholes]
    return Account(
        part=part,
        names=tuple(whole.name for whole in wholes),
        samples=sum(map(len, wholes)),
        has_images=wholes[0].has_images,
        captioned=None if None in captioned else sum(count for count in captioned if count),
        held_out=len(splits[EVAL]) if EVAL in splits else 0,
        rule=_rule(config, wholes[0]) if EVAL in splits else "",
        left_out=tuple(found for whole in wholes for found in whole.left_out),
        divisions=tuple(whole.division for whole in wholes if whole.division),
    )


def _rule(config: SourceConfig, whole: Source) -> str:
    if config.eval_split:
        return f"eval_split={config.eval_split}"
    if whole.held_out is not None or source_type(config.source).splits is not None:
        return "a split of its own"
    by_key = config.source == SourceKind.WEBDATASET and config.held_out_by is HeldOutBy.KEY
    return f"eval_fraction={config.eval_fraction:g}" + (", by the key alone" if by_key else "")
