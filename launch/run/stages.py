"""What each stage of a run is made of: codec, decoder, CLIP, and what else is entered in `STAGES`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from clip_jax import ClipStage, ClipTask
from dalle_jax.codec import CodecStage, CodecTask, FrozenCodec, load_codec
from dalle_jax.codec.compatibility import check_pinned
from dalle_jax.config import from_config_dict
from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, Resizing, TextConfig
from dalle_jax.data.prefetch import process_rows
from dalle_jax.data.records import Source
from dalle_jax.data.sources import TRAIN, open_source
from dalle_jax.data.tokenizer import RowTokenizer
from dalle_jax.decoder.config import DecoderStage
from dalle_jax.decoder.task import DecoderTask
from dalle_jax.errors import UserError
from dalle_jax.run_record import read_run
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.config import TrainConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding
from dalle_jax.training.task import Task
from launch.run.config import RunConfig


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What the loop needs to train one stage."""

    task: Task
    train: TrainConfig
    augment: Augment
    image_size: int
    text: TextConfig | None
    codec: FrozenCodec | None = None
    """What makes its tokens, where it learns from tokens; None: it learns from images."""
    resizing: Resizing = Resizing()
    """What CLIP's `augment` leaves open."""


def plan_codec(run: RunConfig, workdir: epath.Path, trained: bool = True) -> StagePlan:
    """The codec sees images alone."""
    assert run.codec is not None
    task = CodecTask(run.codec, run.data.image_size)
    return StagePlan(task, run.codec.train, run.codec.augment, run.data.image_size, None)


def plan_decoder(run: RunConfig, workdir: epath.Path, trained: bool = True) -> StagePlan:
    """The decoder stands on a trained codec; see `find_codec`."""
    assert run.decoder is not None and run.tokenizer is not None
    codec = find_codec(run, workdir, trained)
    if trained or run.decoder.codec_from:
        check_pinned(codec, workdir / "decoder", run.decoder.codec_from or workdir)
    text = TextConfig(length=run.tokenizer.text_length, dropout=run.tokenizer.bpe_dropout)
    task = DecoderTask(run.decoder.model, codec)
    return StagePlan(task, run.decoder.train, run.decoder.augment, run.data.image_size, text, codec)


def find_codec(run: RunConfig, workdir: epath.Path, trained: bool) -> FrozenCodec:
    """The codec that is named, this run's (without weights unless `trained`), or that of the run it is tuned from."""
    assert run.decoder is not None
    size = run.data.image_size
    if run.decoder.codec_from:
        codec = load_codec(run.decoder.codec_from, image_size=size)
    elif run.codec and not trained:
        return FrozenCodec(run.codec.model, {}, {}, size)
    elif run.codec:
        if not saved_steps(workdir / "codec"):
            raise UserError(
                f"the decoder needs the codec of its run, but {workdir} has no trained codec: train it first"
            )
        return load_codec(workdir)
    elif run.init_from:
        codec = load_codec(read_run(run.init_from).codec_workdir(), image_size=size)
    else:
        raise UserError("the decoder needs a codec: set config.decoder.codec_from to a work directory with one")
    if codec.image_size != size:
        raise UserError(
            f"config.data.image_size is {size}, but the codec takes images of {codec.image_size} pixels a side: "
            f"set --config.data.image_size={codec.image_size}, or name another codec"
        )
    return codec


def plan_clip(run: RunConfig, workdir: epath.Path, trained: bool = True) -> StagePlan:
    """CLIP's captions end with a token of their own and are not augmented (CLIP §2.3)."""
    assert run.clip is not None
    text, vision = TextConfig(length=run.clip.model.text.context_length, end=True), run.clip.model.vision
    return StagePlan(
        ClipTask(run.clip),
        run.clip.locked_train,
        run.clip.augment,
        vision.image_size,
        text,
        resizing=vision.resizing,
    )


@dataclasses.dataclass(frozen=True)
class Stage:
    """A kind of stage."""

    config: type
    """The dataclass of its section, with `train`, a `TrainConfig`, among its fields."""
    plan: Callable[[RunConfig, epath.Path, bool], StagePlan]
    """Of a run and its work directory. The last argument: whether what the stage stands on, as the decoder does on its
    codec, must be trained, or sizes alone are asked for."""


STAGES: dict[str, Stage] = {
    "codec": Stage(CodecStage, plan_codec),
    "decoder": Stage(DecoderStage, plan_decoder),
    "clip": Stage(ClipStage, plan_clip),
}
"""By section of the config, in the order of training; another one is added here, or by the config file that has it."""


def read_run_config(config: Mapping[str, Any] | ConfigDict) -> RunConfig:
    """The config of a run, with a section for each of `STAGES`.

    Raises:
      UserError: as `from_config_dict`.
    """
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    added = [(name, stage.config | None, None) for name, stage in STAGES.items() if name not in fields]
    kind = dataclasses.make_dataclass("RunConfig", added, bases=(RunConfig,), frozen=True) if added else RunConfig
    return from_config_dict(kind, config)


def stages_of(run: RunConfig) -> list[str]:
    """The stages that a config trains, in order."""
    return [name for name in STAGES if getattr(run, name, None) is not None]


def choose_stages(run: RunConfig, names: Sequence[str]) -> list[str]:
    """The stages of a config that `--stages` names, in order; all where it names none.

    Raises:
      UserError: the config has no stage of a name.
    """
    stages = stages_of(run)
    unknown = [name for name in names if name not in stages]
    if unknown:
        raise UserError(f"--stages: the config has no stage '{unknown[0]}' (it has {', '.join(stages)})")
    return [name for name in stages if not names or name in names]


def check_source(source: Source, plan: StagePlan) -> None:
    """Whether a stage can learn from a source.

    Raises:
      UserError: the source holds tokens, and the stage needs images or has another codec.
    """
    if source.encoding is None:
        return
    if plan.codec is None:
        raise UserError(
            f"{source.name} holds tokens in place of images, and the {plan.task.name} learns from images: name "
            "them with config.data.source and config.data.path"
        )
    theirs, ours = dataclasses.asdict(source.encoding), dataclasses.asdict(plan.codec.encoding)
    different = [f"{key} {theirs[key]}, and not {ours[key]}" for key in theirs if theirs[key] != ours[key]]
    if different:
        raise UserError(
            f"{source.name} was encoded by another codec than the decoder's ({'; '.join(different)}): encode the data "
            "again with this codec, or set config.decoder.codec_from to the one that it was encoded with"
        )


def make_batches(
    run: RunConfig, plan: StagePlan, tokenizer: RowTokenizer | None, split: str, source: Source | None = None
) -> Batches:
    """Batches of one split, as the stage wants them; held-out ones are not augmented.

    Where processes share a row of the mesh, because a model axis spans them, they read the same rows.
    """
    held_out = split != TRAIN
    source = source or open_source(run.data, split, as_begun=True)
    check_source(source, plan)
    text = plan.text
    if text is not None and held_out:
        text = dataclasses.replace(text, dropout=0.0)
    sharding = batch_sharding(make_mesh(run.mesh), ShardingRules.of(run.mesh))
    return Batches(
        source,
        batch_size=plan.train.batch_size,
        image_size=plan.image_size,
        augment=plan.augment.held_out if held_out else plan.augment,
        seed=run.seed,
        tokenizer=tokenizer if text is not None else None,
        text=text,
        rows=process_rows(sharding, plan.train.batch_size),
        workers=run.data.workers,
        prefetch=run.data.prefetch,
        max_bad_fraction=run.data.max_bad_fraction,
        max_pixels=run.data.max_pixels,
        resizing=plan.resizing,
    )
