"""From a config to a source, and which of its samples are held out."""

import logging
from collections.abc import Mapping

import numpy as np

from dalle_jax.data.class_captions import ClassCaptions
from dalle_jax.data.config import DataConfig, SourceConfig
from dalle_jax.data.left_out import in_words
from dalle_jax.data.mixture import Mixture, parts_of
from dalle_jax.data.options import check_opened, check_options
from dalle_jax.data.records import LeftOut, Rest, Source, Subset, whole_of
from dalle_jax.data.source_types import EVAL, TRAIN, source_type
from dalle_jax.errors import UserError

_log = logging.getLogger(__name__)

__all__ = ["EVAL", "TRAIN", "hold_out", "open_source", "open_splits", "splits_of", "warn_of_left_out", "whole_of"]

_told: set[tuple[str, tuple[LeftOut, ...]]] = set()
"""Sources whose left-out things have been told of in this process, which opens its data several times."""


def open_source(config: SourceConfig, split: str = TRAIN, *, as_begun: bool = False) -> Source:
    """Opens the samples of one split. What is left out of them is logged as a warning, once.

    Args:
      config: which data, and how it is split; of a mixture, each part is split by itself.
      split: `train` and `eval` are what the run trains on and what it holds out, under whatever names the data set
        has for them (`config.split`, `config.eval_split`, or a part of `config.split`); any other is a split of the
        data set itself, such as `unseen`.
      as_begun: the config is that of a run that was begun with it: options without effect are not refused.

    Returns:
      Records in an order of their own, which is the same every time: `Batches` shuffles them.

    Raises:
      UserError: where the data are missing, damaged or empty, the split does not exist, nothing is held out and `eval`
        is asked for, or an option has no effect on these data (`dalle_jax.data.options`).
    """
    mixture = config.mixture if isinstance(config, DataConfig) else ()
    for part in () if as_begun else mixture or (config,):
        check_options(part)
    source = _open(config, split)
    if not as_begun:
        check_opened(config, {split: source})
    warn_of_left_out(source)
    return source


def warn_of_left_out(source: Source) -> None:
    """Logs what was left out of a source, where this process has not told of it yet."""
    for whole in map(whole_of, parts_of(source)):
        if whole.left_out and (whole.name, whole.left_out) not in _told:
            _told.add((whole.name, whole.left_out))
            _log.warning("%s: left out: %s", whole.name, "; ".join(in_words(whole.left_out)))


def open_splits(config: SourceConfig) -> dict[str, Source]:
    """Opens what a run trains on and what it holds out (`splits_of`); what both are parts of is opened once.

    What is left out is not logged here, nor when the same is opened again: the caller gives an account of it
    (`dalle_jax.data.account`).

    Raises:
      UserError: as `open_source`.
    """
    if isinstance(config, DataConfig) and config.mixture:
        opened = [open_splits(part) for part in config.mixture]
        sources: dict[str, Source] = {
            split: _mix(config, {part.name: found[split] for part, found in zip(config.mixture, opened, strict=True)
                                 if split in found})
            for split in splits_of(config)
        }  # fmt: skip
    elif _is_opened_whole(config):
        whole = _open_named(config, config.split)
        sources = {split: hold_out(whole, config.eval_fraction, split) for split in splits_of(config)}
    else:
        sources = {split: _open(config, split) for split in splits_of(config)}
    for source in sources.values():
        _told.update((whole.name, whole.left_out) for whole in map(whole_of, parts_of(source)))
    return sources


def _open(config: SourceConfig, split: str) -> Source:
    if isinstance(config, DataConfig) and config.mixture:
        # Of the held-out parts, those that hold nothing out are none.
        parts = [part for part in config.mixture if split != EVAL or EVAL in splits_of(part)]
        return _mix(config, {part.name: _open(part, split) for part in parts})
    if split not in (TRAIN, EVAL):
        return _open_named(config, split)
    if _is_opened_whole(config):
        return hold_out(_open_named(config, config.split), config.eval_fraction, split)
    if config.eval_split:
        return _open_named(config, config.split if split == TRAIN else config.eval_split)
    if source_type(config.source).splits is not None:
        return _open_named(config, split)
    whole = _open_named(config, config.split)
    if split == EVAL:
        raise UserError(f"nothing of {whole.name} is held out: set config.data.eval_fraction or config.data.eval_split")
    return whole


def _mix(config: DataConfig, parts: Mapping[str, Source]) -> Mixture:
    if not parts:
        raise UserError("no part of the mixture holds anything out: set eval_fraction or eval_split of one")
    weights = {part.name: part.weight for part in config.mixture}
    return Mixture(list(parts.values()), list(parts), [weights[name] for name in parts])


def _is_opened_whole(config: SourceConfig) -> bool:
    """Whether what is trained on and what is held out are parts of one source, by a share or as the data say."""
    kind = source_type(config.source)
    if config.eval_split:
        return kind.may_be_divided and "{split}" not in config.path
    return config.eval_fraction > 0.0 and kind.splits is None


def splits_of(config: SourceConfig) -> list[str]:
    """`train`, and `eval` where the config, or the data set itself, holds something out."""
    if isinstance(config, DataConfig) and config.mixture:
        return [TRAIN, EVAL] if any(EVAL in splits_of(part) for part in config.mixture) else [TRAIN]
    if config.eval_split:
        return [TRAIN, EVAL]
    splits = source_type(config.source).splits
    if splits is not None:
        return splits(config)
    return [TRAIN, EVAL] if config.eval_fraction else [TRAIN]


def hold_out(source: Source, fraction: float, split: str) -> Source:
    """The part of a source that is trained on (`train`) or held out (`eval`).

    Which samples are held out depends on their keys alone: more data or another order do not move a sample from one
    side to the other, and images that share a key stay together. A key of tars holds the tar's name
    (`HeldOutBy.TAR_AND_KEY`), or does not. Where the data name what is held out (`Source.held_out`), it is that.
    """
    indices = _share(source, fraction) if source.held_out is None else source.held_out
    if split == TRAIN and len(indices) == len(source):
        raise UserError(
            f"{source.name} has {len(source)} sample(s), too few to hold out a share of {fraction}: set "
            "config.data.eval_fraction=0 or bring more data"
        )
    kind = Subset if split == EVAL else Rest
    return kind(source, indices, f"{source.name}, {split} part")


def _share(source: Source, fraction: float) -> np.ndarray:
    """Indices of the samples whose keys' hashes hold them out, ascending."""
    held_out = source.key_hashes() < np.uint64(round(fraction * (2**64 - 2**12)))
    if not held_out.any():
        # Too few samples for the fraction: one is better than an evaluation of nothing.
        held_out[int(np.argmin(source.key_hashes()))] = True
    return np.flatnonzero(held_out).astype(np.uint32 if len(source) <= 1 << 32 else np.int64)


def _open_named(config: SourceConfig, split: str) -> Source:
    """Opens a split under the data set's own name, with captions made where the config makes them."""
    kind = source_type(config.source)
    source = kind.open(config, split)
    if not config.caption_templates or "caption_templates" in kind.unused:
        return source  # `check_options` has refused them where a person set them for these data
    if not source.class_names:
        raise UserError(
            f"config.data.caption_templates has no effect: {source.name} does not name classes; leave it out, "
            "--config.data.caption_templates='()'"
        )
    return ClassCaptions(source, config.caption_templates)
