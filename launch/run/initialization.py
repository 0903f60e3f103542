"""What a run begins with: its tokenizer, and the weights of the model that it is tuned from."""

import functools
from collections.abc import Mapping

import jax
from etils import epath

from clip_jax.config import ReadAt
from clip_jax.fine_tuning import open_init_from, params_of_run, read_init_from, read_run
from clip_jax.loading import published_tokenizer
from clip_jax.tokenizers.published import CaptionTokenizer, load_tokenizer
from clip_jax.tokenizers.run_tokenizer import TrainedTokenizer, has_tokenizer, read_tokenizer
from clip_jax.weights.opening import is_published
from dalle_jax.data.captions import all_captions
from dalle_jax.data.config import TokenizerKind
from dalle_jax.data.records import Source
from dalle_jax.data.sources import TRAIN, open_source
from dalle_jax.data.tokenizer import Tokenizer, train_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.reader import check_model
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.loop import InitFrom
from dalle_jax.training.task import Task
from dalle_jax.training.trees import unbox
from launch.run.config import RunConfig


def initial_params(run: RunConfig, name: str) -> InitFrom | None:
    """The parameters that a stage begins with; None: fresh ones."""
    if not run.init_from:
        return None
    if name != "clip" and not is_published(run.init_from):
        return epath.Path(run.init_from) / name
    assert run.clip is not None
    read = read_init_from if is_published(run.init_from) else read_run
    return functools.partial(read, run.clip.model, run.init_from)


def check_init_from(run: RunConfig, workdir: epath.Path, stages: list[str]) -> None:
    """Compares published weights with the run, as long as it has not begun.

    Raises:
      UserError: they are of another model, or the run trains what they do not hold.
    """
    if not run.init_from or not is_published(run.init_from):
        return
    others = [name for name in stages if name != "clip"]
    if others:
        raise UserError(
            f"config.init_from={run.init_from} holds a CLIP, and the config trains a {others[0]} too: tune it by a "
            "config of its own"
        )
    if run.clip is not None and not saved_steps(workdir / "clip"):
        open_init_from(run.clip.model, run.init_from)


def check_init_from_params(run: RunConfig, workdir: epath.Path, tasks: Mapping[str, Task]) -> None:
    """Compares the models of a trained run with all stages that are to begin with them, by their shapes.

    Raises:
      UserError: the base lacks a stage, or its model is another.
    """
    if not run.init_from or is_published(run.init_from):
        return
    for name, task in tasks.items():
        base = epath.Path(run.init_from) / name
        if saved_steps(workdir / name):
            continue  # it goes on with its own
        if not saved_steps(base):
            raise UserError(
                f"config.init_from={run.init_from} holds no trained {name}, and the config trains one: name a run that "
                f"does, or leave the section {name} out of the config"
            )
        params, model_state = jax.eval_shape(lambda task=task: task.init(jax.random.key(0)))
        params = unbox(params)
        if name == "clip" and run.clip is not None:
            params = params_of_run(run.clip.model, run.init_from, params)
        check_model(base, params, unbox(model_state))


def find_tokenizer(run: RunConfig, workdir: epath.Path) -> Tokenizer | CaptionTokenizer | None:
    """The run's tokenizer: the one in its work directory, else that of what it is tuned from, a named, or a new one.

    Raises:
      UserError: the one that is named differs from that of the model that is tuned, whose weights know no other; it
        does not fit the config; or the captions cannot give the vocabulary that is asked for.
    """
    if run.tokenizer is None:
        return None
    if has_tokenizer(workdir):
        return _checked(_own(read_tokenizer(workdir, context_length=_length(run))), run)
    named, base = _named(run), _of_init_from(run)
    if named is not None and base is not None and named.fingerprint != base.fingerprint:
        raise UserError(
            f"config.tokenizer.path={run.tokenizer.path} is not the tokenizer that {run.init_from} was trained with, "
            "and its weights know no other: leave config.tokenizer.path out to use it"
        )
    tokenizer = base or named
    if tokenizer is None and run.tokenizer.kind is TokenizerKind.PUBLISHED:
        tokenizer = load_tokenizer(context_length=_length(run))
    if tokenizer is None:
        tokenizer = _train_on(open_source(run.data, TRAIN, as_begun=True), run.tokenizer.vocab_size)
    return _checked(tokenizer, run)


def _train_on(source: Source, vocab_size: int) -> Tokenizer:
    try:
        return train_tokenizer(all_captions(source), vocab_size)
    except UserError as error:
        if source.name in str(error):
            raise
        raise UserError(f"{error} (these are the captions of {source.name})") from error


def _named(run: RunConfig) -> Tokenizer | CaptionTokenizer | None:
    assert run.tokenizer is not None
    if not run.tokenizer.path:
        return None
    if run.tokenizer.kind is TokenizerKind.PUBLISHED:
        return load_tokenizer(run.tokenizer.path, context_length=_length(run))
    return Tokenizer(run.tokenizer.path)


def _of_init_from(run: RunConfig) -> Tokenizer | CaptionTokenizer | None:
    """None where nothing is tuned, or published weights bring none that fits."""
    if not run.init_from:
        return None
    if not is_published(run.init_from):
        return _own(read_tokenizer(run.init_from, context_length=_length(run)))
    assert run.clip is not None and run.tokenizer is not None
    found = published_tokenizer(open_init_from(run.clip.model, run.init_from))
    if found is None and not run.tokenizer.path:
        raise UserError(
            f"{run.init_from} brings no tokenizer for its vocabulary of {run.clip.model.text.vocab_size}: name the "
            "folder of one with config.tokenizer.path"
        )
    return None if found is None else _own(found)


def _own(tokenizer: CaptionTokenizer) -> Tokenizer | CaptionTokenizer:
    """One that was trained here as it is, since the decoder reads it too."""
    return tokenizer.tokenizer if isinstance(tokenizer, TrainedTokenizer) else tokenizer


def _length(run: RunConfig) -> int:
    assert run.tokenizer is not None
    return run.tokenizer.text_length if run.clip is None else run.clip.model.text.context_length


def _checked(tokenizer: Tokenizer | CaptionTokenizer, run: RunConfig) -> Tokenizer | CaptionTokenizer:
    assert run.tokenizer is not None
    wanted, published = run.tokenizer, isinstance(tokenizer, CaptionTokenizer)
    if published != (wanted.kind is TokenizerKind.PUBLISHED):
        kind = (TokenizerKind.PUBLISHED if published else TokenizerKind.TRAINED).value
        raise UserError(
            f"the tokenizer is a {kind} one, but config.tokenizer.kind is '{wanted.kind.value}': set it to '{kind}'"
        )
    size = tokenizer.vocab_size
    if size > wanted.vocab_size if published else size != wanted.vocab_size:  # a published table may have spare rows
        raise UserError(
            f"the tokenizer has {size} pieces, but config.tokenizer.vocab_size is {wanted.vocab_size}: set it, and the "
            f"vocab_size of the models, to {size}"
        )
    text = None if run.clip is None else run.clip.model.text
    if text is not None and text.read_at is ReadAt.END and text.end_id != tokenizer.end_id:
        raise UserError(
            f"the tokenizer ends captions with {tokenizer.end_id}, but config.clip.model.text.end_id is "
            f"{text.end_id}: set it to {tokenizer.end_id}"
        )
    return tokenizer
