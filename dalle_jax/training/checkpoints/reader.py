"""Reads trained models from the checkpoints of a stage, for whoever uses them."""

import logging
from typing import Any, NamedTuple

import jax
from etils import epath

from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.orbax_io import (
    DamagedCheckpoint,
    check_same,
    check_unchanged,
    checkpoint_folder,
    metadata_of,
    one_line,
    placed,
    read_items,
    read_together,
)
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.parallel.processes import from_primary

_log = logging.getLogger(__name__)


class LoadedParams(NamedTuple):
    """What inference needs of a checkpoint."""

    params: Any
    model_state: Any
    step: int


def load_params(stage_dir: epath.PathLike, step: int | None = None, *, shardings: Any = None) -> LoadedParams:
    """Reads a trained model: the running average where one is kept, else the parameters.

    Args:
      stage_dir: the stage's folder in a work directory.
      step: of the checkpoint; None: the newest that is whole.
      shardings: None: numpy arrays on the host. One `Sharding`: of every array. Or a tree like the parameters, of
        `Sharding`s, or of abstract arrays that carry them, whose shapes are then compared too; the model state is
        replicated over the same mesh.

    Raises:
      UserError: there is no such checkpoint, it cannot be read, or it is of another model.
    """
    directory, failure = checkpoint_folder(stage_dir), ""
    # All read the same, though another run may be saving there.
    for candidate in from_primary(lambda: _candidates(stage_dir, step)):
        try:
            return _load(directory / str(candidate), candidate, shardings)
        except DamagedCheckpoint as damage:
            failure = str(damage)
        if jax.process_index() == 0:
            _log.warning("checkpoint %d in %s is damaged (%s)", candidate, directory, failure)
    raise UserError(f"no checkpoint in {directory} can be read ({failure})")


def check_model(stage_dir: epath.PathLike, params: Any, model_state: Any) -> None:
    """Compares the model that `load_params` would read with the one that is to begin with it; no array is read.

    Args:
      stage_dir: the stage's folder in a work directory.
      params: a tree like the parameters, of anything with a shape.
      model_state: likewise; looked at where the checkpoint holds any.

    Raises:
      UserError: there is no checkpoint, or it is of another model.
    """
    directory, failure = checkpoint_folder(stage_dir), ""
    for step in _candidates(stage_dir):
        checkpoint = directory / str(step)
        wanted = {_model_item(checkpoint): params}
        if (checkpoint / "model_state").exists():
            wanted["model_state"] = model_state
        try:
            found = {name: metadata_of(checkpoint, name) for name in wanted}
        except Exception as error:  # As in `read_together`; it will be passed over by `load_params` too.
            failure = one_line(error)
            continue
        for name in wanted:
            check_same(wanted[name], found[name], f"{checkpoint}/{name}")
        return
    raise UserError(f"no checkpoint in {directory} can be read ({failure})")


def load_item(stage_dir: epath.PathLike, step: int, name: str) -> Any:
    """One item of a checkpoint (`params`, `ema`, `model_state` or `optimizer`) as it was saved, numpy arrays."""
    directory = checkpoint_folder(stage_dir) / str(step)
    return read_items(directory, {name: metadata_of(directory, name)}, progress=False)[0][name]


def _candidates(stage_dir: epath.PathLike, step: int | None = None) -> list[int]:
    """The steps to read a model from, the best first.

    Raises:
      UserError: there is none.
    """
    steps = saved_steps(stage_dir)
    if not steps or (step is not None and step not in steps):
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        has = f"; it has {', '.join(map(str, steps))}" if steps else "; train that stage first"
        raise UserError(f"there is {which} in {checkpoint_folder(stage_dir)}{has}")
    return steps[::-1] if step is None else [step]


def _model_item(directory: epath.Path) -> str:
    """Which item of a checkpoint holds what inference needs: the average where one is kept."""
    return "ema" if (directory / "ema").exists() else "params"


def _load(directory: epath.Path, step: int, shardings: Any) -> LoadedParams:
    name, trees, progress = read_together(lambda: _read_model(directory, shardings))
    # Arrays on the host were read, and are judged, by each process for itself.
    read_together(lambda: check_unchanged(trees, progress))
    return LoadedParams(trees[name], trees.get("model_state", {}), step)


def _read_model(directory: epath.Path, shardings: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Which item holds the parameters, the items, and the progress."""
    name = _model_item(directory)
    found = metadata_of(directory, name)
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        elsewhere, wanted = shardings, {name: placed(found, shardings)}
    else:
        check_same(shardings, found, f"{directory}/{name}")
        tree = jax.tree.map(lambda x: getattr(x, "sharding", x), shardings)
        mesh = jax.tree.leaves(tree)[0].mesh
        elsewhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        wanted = {name: jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), found, tree)}
    if (directory / "model_state").exists():
        wanted["model_state"] = placed(metadata_of(directory, "model_state"), elsewhere)
    return name, *read_items(directory, wanted)
