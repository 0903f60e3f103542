"""Checkpoints of a stage: saved while it trains, restored onto any mesh, and read by whoever uses the model.

The only module that knows Orbax. A checkpoint is a directory `checkpoints/<step>/` of one item each for `params`, `ema`
and `model_state` (where there are any), `optimizer`, and `progress` (JSON, with a checksum of every array). Saving is
asynchronous and ends with a rename, or in a bucket with a file `commit_success.txt`, so that what `saved_steps` lists
was whole once; what was damaged later is found when it is read.
"""

import contextlib
import itertools
import logging
import math
import os
import re
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from dalle_jax.errors import DISK_FULL, UserError
from dalle_jax.training.checkpoints.checksums import changed, checksums
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.config import TrainConfig
from dalle_jax.training.parallel.processes import from_primary, gather
from dalle_jax.training.state import TrainState
from dalle_jax.training.trees import named_leaves

T = TypeVar("T")

_log = logging.getLogger(__name__)

_ASKED = itertools.count(1)
_CHECKSUMS = "checksums"  # in the progress
_PASSING = "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED"  # TensorStore's words


class Restored(NamedTuple):
    """A training state from disk, without its key, and the JSON that was saved with it."""

    state: TrainState
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training stage. Every process calls every method, in the same order."""

    def __init__(self, stage_dir: epath.PathLike, config: TrainConfig, best_metric: str, best_mode: str):
        """Opens `stage_dir/checkpoints`, and removes what an interrupted save left there.

        Args:
          stage_dir: the stage's folder in a work directory.
          config: how many to keep: `keep_last`, `keep_best`, `keep_every`.
          best_metric: the evaluation metric that ranks them.
          best_mode: `min` or `max` of it.
        """
        self.directory = _folder(stage_dir)
        self._best_metric, self._best_mode = best_metric, best_mode
        self._manager = self._open(config)

    def _open(self, config: TrainConfig) -> ocp.CheckpointManager:
        policies = ocp.checkpoint_managers

        def metric(metrics) -> float:
            return metrics[self._best_metric]

        # Alone, `best_fn` would delete the newest checkpoint where its metric is worse; here it has metrics written.
        keep: list[Any] = [policies.LatestN(max(config.keep_last, 1))]
        if config.keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=metric,
                    reverse=self._best_mode == "min",
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=metric,
            best_mode=self._best_mode,
            cleanup_tmp_directories=True,
        )
        with _full_disk(self.directory):
            return ocp.CheckpointManager(self.directory, options=options)

    @property
    def steps(self) -> list[int]:
        """Steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is better than that of every checkpoint kept."""
        value = metrics.get(self._best_metric, math.nan)
        kept = [(self._manager.metrics(step) or {}).get(self._best_metric) for step in self.steps]
        kept = [other for other in kept if other is not None]
        if self._best_mode == "min":
            return math.isfinite(value) and all(value < other for other in kept)
        return math.isfinite(value) and all(value > other for other in kept)

    def save(
        self, step: int, state: TrainState, progress: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts to save; returns when the arrays are copied off the devices. A step that is on disk is left alone.

        Args:
          step: updates made so far.
          state: all but its key is saved.
          progress: JSON that `restore` gives back.
          metrics: of an evaluation of this very state, by which it may be kept as the best.

        Raises:
          UserError: the disk is full (of this save, or of the one before, which ended in the background).
        """
        if step in self._manager.all_steps():
            return
        trees = _items(state)
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        about = {**progress, _CHECKSUMS: checksums(trees)}
        value = (metrics or {}).get(self._best_metric, math.nan)
        with _full_disk(self.directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(**items, progress=ocp.args.JsonSave(about)),
                metrics={self._best_metric: float(value)} if math.isfinite(value) else None,
                force=True,
            )

    def restore(self, abstract: TrainState) -> Restored | None:
        """Reads the newest checkpoint that is whole.

        Args:
          abstract: shapes, dtypes and shardings of the state (`with_shardings`), on any mesh.

        Returns:
          None where there is no checkpoint. Damaged ones that are newer than the one restored are renamed to
          `<step>.damaged`, and a line on stderr says so.

        Raises:
          UserError: a checkpoint holds another model, or there are checkpoints and none can be read.
        """
        damaged: dict[int, str] = {}
        # A disk that is shared may show its newest files to some of the processes only.
        for step in reversed(from_primary(lambda: self.steps)):
            result = self._try(step, abstract)
            if isinstance(result, str):
                damaged[step] = result
                continue
            self._set_aside(damaged, step)
            return result
        if damaged:
            raise UserError(f"none of the checkpoints in {self.directory} can be read ({max(damaged)}: "
                            f"{damaged[max(damaged)]}): start again in an empty work directory")  # fmt: skip
        return None

    def _try(self, step: int, abstract: TrainState) -> Restored | str:
        """A restored state, or why it cannot be read: by this process, or by another."""
        directory, wanted = self.directory / str(step), _items(abstract)
        result: Restored | str
        try:
            for name in set(wanted) - {"optimizer"}:
                check_same(wanted[name], _metadata(directory, name), f"{directory}/{name}")
            trees, progress = _read(directory, wanted)
            optimizer = trees.pop("optimizer")
            state = abstract.replace(**{"ema": None, "model_state": {}} | trees | optimizer)
            result = Restored(state, progress)
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
            result = _of_damage(error)
        result = _agreed(result)
        return result if isinstance(result, str) else _unchanged(result, _items(result.state), result.progress)

    def _set_aside(self, damaged: dict[int, str], good: int) -> None:
        for step, reason in damaged.items():
            if jax.process_index() == 0:
                _log.warning(
                    "checkpoint %d in %s is damaged (%s): going back to %d; it is kept as %d.damaged",
                    *(step, self.directory, reason, good, step),
                )
                aside = self.directory / f"{step}.damaged"
                if aside.exists():
                    aside.rmtree()  # the run has come by this step before
                (self.directory / str(step)).rename(aside)
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints set aside")
            self._manager.reload()

    def reached_preemption(self) -> bool:
        """Whether all processes agreed to stop now, after a SIGTERM to any of them; asked for after every step."""
        # JAX agrees on a number that is to come. Steps begin again with each stage, and would let it wait for long.
        return self._manager.reached_preemption(next(_ASKED))

    def wait(self) -> None:
        """Returns when the save that is under way is whole on disk.

        Raises:
          UserError: the disk is full.
        """
        with _full_disk(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save that is under way.

        Raises:
          UserError: the disk is full.
        """
        with _full_disk(self.directory):
            self._manager.close()


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
    directory, failure = _folder(stage_dir), ""
    # All read the same, though another run may be saving there.
    for candidate in from_primary(lambda: _candidates(stage_dir, step)):
        result = _load(directory / str(candidate), candidate, shardings)
        if not isinstance(result, str):
            return result
        failure = result
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
    directory, failure = _folder(stage_dir), ""
    for step in _candidates(stage_dir):
        checkpoint = directory / str(step)
        wanted = {_model_item(checkpoint): params}
        if (checkpoint / "model_state").exists():
            wanted["model_state"] = model_state
        try:
            found = {name: _metadata(checkpoint, name) for name in wanted}
        except Exception as error:  # As in `Checkpoints.restore`; it will be passed over by `load_params` too.
            failure = _one_line(error)
            continue
        for name in wanted:
            check_same(wanted[name], found[name], f"{checkpoint}/{name}")
        return
    raise UserError(f"no checkpoint in {directory} can be read ({failure})")


def load_item(stage_dir: epath.PathLike, step: int, name: str) -> Any:
    """One item of a checkpoint (`params`, `ema`, `model_state` or `optimizer`) as it was saved, numpy arrays."""
    directory = _folder(stage_dir) / str(step)
    return _read(directory, {name: _metadata(directory, name)}, progress=False)[0][name]


def check_same(wanted: Any, found: Any, where: str) -> None:
    """Compares two trees of arrays by name, and by shape where both have one.

    Raises:
      UserError: naming the first parameters that are missing, unknown or of another shape.
    """
    shape_of = {name: getattr(leaf, "shape", None) for name, leaf in named_leaves(wanted).items()}
    shape_found = {name: leaf.shape for name, leaf in named_leaves(found).items()}
    faults = [f"'{name}' is missing" for name in shape_of if name not in shape_found]
    faults += [f"'{name}' is unknown to the model" for name in shape_found if name not in shape_of]
    faults += [
        f"'{name}' is {tuple(shape_found[name])} and should be {tuple(shape)}"
        for name, shape in shape_of.items()
        if shape is not None and name in shape_found and tuple(shape_found[name]) != tuple(shape)
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{where} does not fit the model: {'; '.join(faults[:3])}{more}; is its config another one?")


def _folder(stage_dir: epath.PathLike) -> epath.Path:
    """Where a stage's checkpoints are; absolute, since Orbax takes no other path (and says so only when it saves)."""
    path = os.fspath(stage_dir)
    return epath.Path(path if "://" in path else os.path.abspath(path)) / "checkpoints"


def _candidates(stage_dir: epath.PathLike, step: int | None = None) -> list[int]:
    """The steps to read a model from, the best first.

    Raises:
      UserError: there is none.
    """
    steps = saved_steps(stage_dir)
    if not steps or (step is not None and step not in steps):
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        has = f"; it has {', '.join(map(str, steps))}" if steps else "; train that stage first"
        raise UserError(f"there is {which} in {_folder(stage_dir)}{has}")
    return steps[::-1] if step is None else [step]


def _model_item(directory: epath.Path) -> str:
    """Which item of a checkpoint holds what inference needs: the average where one is kept."""
    return "ema" if (directory / "ema").exists() else "params"


def _load(directory: epath.Path, step: int, shardings: Any) -> LoadedParams | str:
    """A model, or why it cannot be read: by this process, or by another."""
    result: tuple[str, dict[str, Any], dict[str, Any]] | str
    try:
        result = _read_model(directory, shardings)
    except UserError:
        raise
    except Exception as error:  # As in `Checkpoints.restore`.
        result = _of_damage(error)
    result = _agreed(result)
    if isinstance(result, str):
        return result
    name, trees, progress = result
    # Arrays on the host were read, and are judged, by each process for itself.
    return _agreed(_unchanged(LoadedParams(trees[name], trees.get("model_state", {}), step), trees, progress))


def _read_model(directory: epath.Path, shardings: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Which item holds the parameters, the items, and the progress."""
    name = _model_item(directory)
    found = _metadata(directory, name)
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        elsewhere, wanted = shardings, {name: _place(found, shardings)}
    else:
        check_same(shardings, found, f"{directory}/{name}")
        tree = jax.tree.map(lambda x: getattr(x, "sharding", x), shardings)
        mesh = jax.tree.leaves(tree)[0].mesh
        elsewhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        wanted = {name: jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), found, tree)}
    if (directory / "model_state").exists():
        wanted["model_state"] = _place(_metadata(directory, "model_state"), elsewhere)
    return name, *_read(directory, wanted)


def _agreed(result: T | str) -> T | str:
    """What this process read, where all could; else why one could not."""
    readable = gather(not isinstance(result, str))
    return result if isinstance(result, str) or all(readable) else f"process {readable.index(False)} cannot read it"


def _unchanged(result: T, trees: Mapping[str, Any], progress: dict[str, Any]) -> T | str:
    """The result, where its arrays are those that were saved. Takes the checksums out of `progress`."""
    wrong = changed(trees, progress.pop(_CHECKSUMS, {}))
    return f"{len(wrong)} arrays are not what was saved, such as {wrong[0]}" if wrong else result


def _items(state: TrainState) -> dict[str, Any]:
    """The trees that are saved, by item; Orbax refuses empty ones."""
    items = {"params": state.params, "ema": state.ema, "model_state": state.model_state}
    items = {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}
    return items | {"optimizer": {"step": state.step, "opt_state": state.opt_state}}


def _metadata(directory: epath.Path, name: str) -> Any:
    """Names, shapes and dtypes of one item, from its index alone."""
    if not (directory / name).exists():
        raise FileNotFoundError(f"{directory / name} is missing")
    metadata = ocp.PyTreeCheckpointHandler().metadata(directory / name)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.tree)


def _place(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _read(directory: epath.Path, wanted: Mapping[str, Any], progress: bool = True) -> tuple[dict[str, Any], dict]:
    """Reads items onto the shardings of `wanted`; arrays without one become numpy arrays.

    Every process reads for itself, with no barrier that the others would wait at if a file is damaged for one of them.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"read_{jax.process_index()}",
    )

    def restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    args: dict[str, Any] = {
        name: ocp.args.PyTreeRestore(item=tree, restore_args=jax.tree.map(restore_args, tree))
        for name, tree in wanted.items()
    }
    if progress:
        args["progress"] = ocp.args.JsonRestore()
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone))
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        result = reader.restore(directory, args=ocp.args.Composite(**args))
    return {name: result[name] for name in wanted}, result["progress"] if progress else {}


@contextlib.contextmanager
def _full_disk(directory: epath.Path) -> Generator[None, None, None]:
    """Turns the several faces of a full disk into one line. Orbax deletes nothing before the new save is whole."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        if not full and "No space left on device" not in str(error):
            raise
        steps = saved_steps(directory.parent)
        kept = f"checkpoint {max(steps)} is intact" if steps else "no checkpoint was saved before"
        raise UserError(
            f"the disk is full while saving to {directory}: free some space and start again ({kept})"
        ) from error


def _of_damage(error: Exception) -> str:
    """What is wrong with a file; raises again what another try, right or memory would mend: the file may be whole."""
    passing = isinstance(error, PermissionError | ConnectionError | TimeoutError | MemoryError)
    if passing or re.search(_PASSING, str(error)):
        raise error
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
