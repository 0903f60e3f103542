"""Saves the state of a stage while it trains, and restores it onto any mesh.

What a checkpoint holds is said in `orbax_io`. Saving is asynchronous and ends with a rename, or in a bucket with a file
`commit_success.txt`, so that what `saved_steps` lists was whole once; what was damaged later is found when it is read.
"""

import itertools
import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.checksums import checksums
from dalle_jax.training.checkpoints.orbax_io import (
    CHECKSUMS,
    DamagedCheckpoint,
    check_same,
    check_unchanged,
    checkpoint_folder,
    full_disk_told,
    metadata_of,
    read_items,
    read_together,
)
from dalle_jax.training.config import TrainConfig
from dalle_jax.training.parallel.processes import from_primary
from dalle_jax.training.state import TrainState

_log = logging.getLogger(__name__)

_ASKED = itertools.count(1)


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
        self.directory = checkpoint_folder(stage_dir)
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
        with full_disk_told(self.directory):
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
        about = {**progress, CHECKSUMS: checksums(trees)}
        value = (metrics or {}).get(self._best_metric, math.nan)
        with full_disk_told(self.directory):
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
            try:
                restored = self._restore(step, abstract)
            except DamagedCheckpoint as damage:
                damaged[step] = str(damage)
                continue
            self._set_aside(damaged, step)
            return restored
        if damaged:
            raise UserError(f"none of the checkpoints in {self.directory} can be read ({max(damaged)}: "
                            f"{damaged[max(damaged)]}): start again in an empty work directory")  # fmt: skip
        return None

    def _restore(self, step: int, abstract: TrainState) -> Restored:
        directory, wanted = self.directory / str(step), _items(abstract)

        def read() -> Restored:
            for name in set(wanted) - {"optimizer"}:
                check_same(wanted[name], metadata_of(directory, name), f"{directory}/{name}")
            trees, progress = read_items(directory, wanted)
            optimizer = trees.pop("optimizer")
            return Restored(abstract.replace(**{"ema": None, "model_state": {}} | trees | optimizer), progress)

        restored = read_together(read)
        check_unchanged(_items(restored.state), restored.progress)
        return restored

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
        with full_disk_told(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save that is under way.

        Raises:
          UserError: the disk is full.
        """
        with full_disk_told(self.directory):
            self._manager.close()


def _items(state: TrainState) -> dict[str, Any]:
    """The trees that are saved, by item; Orbax refuses empty ones."""
    items = {"params": state.params, "ema": state.ema, "model_state": state.model_state}
    items = {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}
    return items | {"optimizer": {"step": state.step, "opt_state": state.opt_state}}
