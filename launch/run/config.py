"""The config of a whole run: the sections that every stage shares, and the stages it trains."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from etils import epath

from clip_jax import ClipStage, Lock
from dalle_jax import storage
from dalle_jax.codec import CodecStage
from dalle_jax.data.config import DataConfig, HeldOutBy, SourceConfig, TokenizerConfig, TokenizerKind
from dalle_jax.data.options import check_opened, check_options
from dalle_jax.data.records import Source
from dalle_jax.data.sources import open_splits
from dalle_jax.decoder.config import DecoderStage
from dalle_jax.errors import UserError
from dalle_jax.storage import is_remote
from dalle_jax.training.checkpoints.workdir import read_workdir
from dalle_jax.training.config import MeshConfig
from launch.cli import overridden

S = TypeVar("S", bound=SourceConfig)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What `configs/X.py` describes. The stages present are trained, in this order: codec, decoder, CLIP."""

    data: DataConfig
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    tokenizer: TokenizerConfig | None = None
    codec: CodecStage | None = None
    decoder: DecoderStage | None = None
    clip: ClipStage | None = None
    init_from: str | None = None
    """Work directory of a trained run to fine-tune: every stage begins with its weights, captions are read with its
    tokenizer, and its codec is used where this run trains none. Or published weights of a CLIP to fine-tune."""

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, not {self.seed}")
        if not any(hasattr(getattr(self, field.name), "train") for field in dataclasses.fields(self)):
            raise UserError("the config trains nothing: give it a section 'codec', 'decoder' or 'clip'")
        if (self.decoder or self.clip) and self.tokenizer is None:
            raise UserError("config.tokenizer is missing: the decoder and CLIP read captions")
        tokenizer = self.tokenizer
        if tokenizer is not None and tokenizer.kind is TokenizerKind.PUBLISHED and (self.decoder or not self.clip):
            raise UserError("config.tokenizer.kind is 'published', which is CLIP's alone: the decoder needs 'trained'")
        if self.decoder is not None and tokenizer is not None:
            model = self.decoder.model
            _same("decoder.model.text_vocab_size", model.text_vocab_size, "tokenizer.vocab_size", tokenizer.vocab_size)
            _same("decoder.model.text_length", model.text_length, "tokenizer.text_length", tokenizer.text_length)
        if self.clip is not None and tokenizer is not None:
            vocab_size = self.clip.model.text.vocab_size
            _same("clip.model.text.vocab_size", vocab_size, "tokenizer.vocab_size", tokenizer.vocab_size)
        if self.codec is not None:
            grid_size = self.codec.model.grid_size(self.data.image_size)  # ValueError where it does not divide
            if self.decoder is not None and self.decoder.codec_from is None:
                model = self.decoder.model
                _same("decoder.model.grid_size", model.grid_size, "the codec's grid", grid_size)
                size = self.codec.model.codebook_size
                _same("decoder.model.codebook_size", model.codebook_size, "codec.model.codebook_size", size)


@dataclasses.dataclass(frozen=True)
class EfficiencyConfig:
    """One experiment: everything but the objective is the same in all runs."""

    data: DataConfig
    tokenizer: TokenizerConfig
    clip: ClipStage
    """Towers, training and augmentation; the learning rate in it is replaced."""
    prompts: str
    """The published set that names the classes of the labels."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Captions that score a class."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    seeds: tuple[int, ...] = (0, 1, 2)
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        if not self.learning_rates or not self.seeds:
            raise ValueError("learning_rates and seeds must each hold at least one")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"seeds must be from 0 to 2**32 - 1, not {self.seeds}")
        for name in ("num_steps", "eval_every", "eval_batches"):
            if not getattr(self.clip.train, name):
                raise ValueError(f"clip.train.{name} must be above 0: its evaluations are the points of the figure")
        if self.clip.model.vision.patch_dropout or self.clip.locked_tower is not Lock.NONE:
            raise ValueError("clip.model.vision.patch_dropout and clip.locked_tower are for CLIP: leave them out here")


def held_out_as_begun(data: DataConfig, workdir: epath.Path) -> DataConfig:
    """The same data, of which a run that goes on holds out what it has held out so far: by the key alone, where it was
    begun so. Otherwise it would be measured on what it was trained on."""
    if not (workdir / "config.json").exists():
        return data
    there = read_workdir(workdir).get("data") or {}
    parts = zip(data.mixture, there.get("mixture") or (), strict=False)  # other parts are refused as another config
    mixture = tuple(_held_out_as(part, old) for part, old in parts)
    return dataclasses.replace(_held_out_as(data, there), mixture=mixture + data.mixture[len(mixture) :])


def _held_out_as(source: S, there: Mapping[str, Any]) -> S:
    by_key = there.get("held_out_by") == HeldOutBy.KEY.value
    return dataclasses.replace(source, held_out_by=HeldOutBy.KEY) if by_key else source


def open_data(data: DataConfig, *, as_begun: bool = False) -> dict[str, Source]:
    """`open_splits`, of which a run that begins is refused options without effect. A config whose data the command line
    replaces keeps what was for its own.

    Args:
      data: what to open.
      as_begun: a run goes on with it, as it did.

    Raises:
      UserError: as `open_splits`; or an option has no effect.
    """
    given = overridden("data")
    if not as_begun:
        check_options(data, given)
    sources = open_splits(data)
    if not as_begun:
        check_opened(data, sources, given)
    return sources


def with_absolute_paths(run: RunConfig) -> RunConfig:
    """The same run, with the places it stands on named so that they are found from every working directory."""
    decoder, tokenizer = run.decoder, run.tokenizer
    if decoder is not None:
        decoder = dataclasses.replace(decoder, codec_from=_absolute(decoder.codec_from))
    if tokenizer is not None:
        tokenizer = dataclasses.replace(tokenizer, path=_absolute(tokenizer.path))
    return dataclasses.replace(run, init_from=_absolute(run.init_from), decoder=decoder, tokenizer=tokenizer)


def _absolute(path: str | None) -> str | None:
    return path if not path or is_remote(path) else os.path.abspath(storage.expanduser(path))


def _same(name: str, value: int, other_name: str, other: int) -> None:
    if value != other:
        raise UserError(f"config.{name} is {value}, but {other_name} is {other}: set them alike")
