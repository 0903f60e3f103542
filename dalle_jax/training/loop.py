"""The one training loop: codec, decoder and CLIP each bring a `Task`."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from dalle_jax.training.checkpoints.manager import Checkpoints
from dalle_jax.training.checkpoints.orbax_io import check_same
from dalle_jax.training.checkpoints.reader import LoadedParams, load_params
from dalle_jax.training.config import MeshConfig, TrainConfig
from dalle_jax.training.parallel.determinism import warn_unless_deterministic
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.preemption import Preempted, StopSignal
from dalle_jax.training.parallel.sharding import ShardingRules, put_keys
from dalle_jax.training.program import StepProgram, build_step
from dalle_jax.training.state import TrainState, run_keys
from dalle_jax.training.step import TrainStep
from dalle_jax.training.task import Batch, Metrics, Task
from dalle_jax.training.telemetry.attempts import broke_off
from dalle_jax.training.telemetry.clock import Clock, Kind
from dalle_jax.training.telemetry.heartbeat import Heartbeat
from dalle_jax.training.telemetry.profiler import profiler
from dalle_jax.training.telemetry.rows import Reporter
from dalle_jax.training.telemetry.speed import memory_row, speed_row, time_row
from dalle_jax.training.telemetry.watchdog import Watchdog
from dalle_jax.training.telemetry.writers import Writer, open_writers

_log = logging.getLogger(__name__)

InitFrom = epath.PathLike | Callable[[TrainState], LoadedParams]
"""Where a run's first parameters come from: a stage's folder of another run, or a function that reads them onto the
shardings of the abstract state that it is given."""

_POSTPONED = "looks_postponed"  # in the progress: evaluation and preview of this step are left to the next start


@runtime_checkable
class BatchSource(Protocol):
    """Batches by number: batch n is a function of n alone, so that the position in the data is the step."""

    @property
    def bad_counts(self) -> Mapping[str, int]:
        """Samples replaced so far because they could not be read, by reason."""
        ...

    @property
    def captions_cut(self) -> int:
        """Captions so far that were longer than the text."""
        ...

    @property
    def part_counts(self) -> Mapping[str, int]:
        """Samples so far of each part of a mixture; empty where there is none."""
        ...

    def iterate(self, start: int, *, sharding: NamedSharding) -> Iterator[Batch]:
        """Batches start, start + 1, ... as global arrays of `sharding`, without end."""
        ...

    def epoch(self, num_batches: int | None, *, sharding: NamedSharding) -> Iterator[Batch]:
        """A pass over held-out data, of `num_batches` at the most; the same batches at every call."""
        ...


def train(
    task: Task,
    config: TrainConfig,
    *,
    mesh_config: MeshConfig,
    batches: BatchSource,
    workdir: epath.PathLike,
    seed: int,
    eval_batches: BatchSource | None = None,
    init_from: InitFrom | None = None,
    profile_steps: tuple[int, int] | None = None,
    wandb: str = "",
    on_row: Callable[[int, Mapping[str, float]], None] | None = None,
    devices: list[jax.Device] | None = None,
    began: float | None = None,
) -> TrainState:
    """Trains one stage to `config.num_steps`, or goes on from where it was stopped.

    A resumed run equals the one that was never interrupted bit for bit, on the same mesh and hardware: the state is
    restored whole, batch n and the randomness of step n are functions of n.

    Args:
      task: what is trained.
      config: sizes, optimizer and intervals.
      mesh_config: how the devices are arranged.
      batches: training data.
      workdir: the stage's folder; gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `previews/`, `profile/`,
        `starts/` and `summary.json` (where the time went; see `starts.py`).
      seed: of the parameters and of every step.
      eval_batches: held-out data, of which the same `config.eval_batches` batches are evaluated every time.
      init_from: parameters that this run begins with (fine-tuning); not looked at where it is gone on with.
      profile_steps: first and last step of a profiler trace.
      wandb: project of Weights & Biases; empty: none.
      on_row: called on every process with each row of metrics.
      devices: None: all.
      began: Unix time at which the work on this stage began, for the account of its time; None: now.

    Returns:
      The state after the last step, which is also the newest checkpoint.

    Raises:
      UserError: mesh, batch or parameters do not fit; the disk is full.
      NotFinite: the loss or a gradient was not finite.
      Preempted: a SIGTERM came and the state is saved; ends the process with code 0.
    """
    mesh, rules = make_mesh(mesh_config, devices), ShardingRules.of(mesh_config)
    if config.deterministic:
        warn_unless_deterministic(mesh.devices.flat[0].platform)
    if init_from is None:
        _warn_of_a_slow_average(config, task.name)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(rules.context())
        stop = stack.enter_context(StopSignal())
        clock = stack.enter_context(Clock(began))
        heartbeat = stack.enter_context(Heartbeat(workdir, task, config, clock, list(mesh.devices.flat)))
        watchdog = stack.enter_context(Watchdog(task.name, config.watchdog_seconds))
        program = build_step(task, config, mesh, rules)
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(workdir, config, task.best_metric, task.best_mode))
        )
        newest = checkpoints.steps[-1] if checkpoints.steps else 0
        if newest < config.num_steps or broke_off(workdir):
            heartbeat.open(newest)
        state, progress = _first_state(program, checkpoints, init_from, seed)
        if int(state.step) >= config.num_steps:
            return state  # finished before: its files stay as they are
        heartbeat.open(int(state.step))
        writers: list[Writer] = []
        if jax.process_index() == 0:
            step, evaluates = int(state.step), bool(progress.get(_POSTPONED))
            writers = open_writers(task.name, workdir, step, config.num_steps, wandb, evaluates=evaluates)
        for writer in writers:
            stack.enter_context(contextlib.closing(writer))
        context = LoopContext(
            task=task,
            config=config,
            program=program,
            batches=batches,
            eval_batches=eval_batches,
            checkpoints=checkpoints,
            writers=writers,
            stop=stop,
            watchdog=watchdog,
            on_row=on_row,
            progress=progress,
            clock=clock,
            heartbeat=heartbeat,
        )
        with profiler(epath.Path(workdir) / "profile", profile_steps) as profile:
            return _Loop(context).run(state, profile)


def _first_state(
    program: StepProgram, checkpoints: Checkpoints, init_from: InitFrom | None, seed: int
) -> tuple[TrainState, dict[str, Any]]:
    """The state that a run starts from, and the progress of the row it is in."""
    # 1. A checkpoint of this run goes before everything else.
    abstract, shardings = program.abstract, program.shardings
    restored = checkpoints.restore(abstract)
    if restored is not None:
        key = put_keys(run_keys(seed)[1], shardings.key)
        return restored.state.replace(key=key), restored.progress
    # 2. A fresh state, with the parameters of another model where one is named.
    state = program.init(seed)
    if init_from is not None:
        state = state.replace(params=None, ema=None)  # no memory for two models
        loaded = init_from(abstract) if callable(init_from) else load_params(init_from, shardings=abstract.params)
        state = state.replace(params=loaded.params)
        if abstract.ema is not None:
            state = state.replace(ema=jax.tree.map(lambda x: x.copy(), loaded.params))
        if jax.tree.leaves(loaded.model_state):
            check_same(state.model_state, loaded.model_state, "the model state that this run begins with")
            state = state.replace(model_state=jax.device_put(loaded.model_state, shardings.model_state))
    return state, {}


def _warn_of_a_slow_average(config: TrainConfig, stage: str) -> None:
    """The average is what is evaluated and loaded: where it ends half random, samples are poor and the loss is not."""
    if config.initial_share > 0.05 and jax.process_index() == 0:
        _log.warning(
            f"{stage}: the average of the parameters, which is what is evaluated and loaded, will still be "
            f"{config.initial_share:.0%} random ones after {config.num_steps:,} steps: lower ema_decay "
            f"({config.ema_decay}) or train longer"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopContext:
    """What a stage has open while it trains; none of it changes from step to step."""

    task: Task
    config: TrainConfig
    program: StepProgram
    batches: BatchSource
    eval_batches: BatchSource | None
    checkpoints: Checkpoints
    writers: list[Writer]
    stop: StopSignal
    watchdog: Watchdog
    on_row: Callable[[int, Mapping[str, float]], None] | None
    progress: dict[str, Any]
    """Of the row of metrics that the run is in, from the checkpoint that it goes on from."""
    clock: Clock
    heartbeat: Heartbeat


class _Loop:
    """Steps, and what comes between them: rows of metrics, evaluation, previews, checkpoints."""

    def __init__(self, context: LoopContext):
        self.context = context
        self.compiled: TrainStep | None = None
        config, clock = context.config, context.clock
        self.reporter = Reporter(
            config.log_every, config.num_steps, clock, self._write_row, self._newest, context.progress
        )

    def run(self, state: TrainState, profile: Callable[[int, TrainState], None]) -> TrainState:
        """Steps until the end, or until a stop is asked for."""
        first, num_steps = int(state.step), self.context.config.num_steps
        self.context.clock.enter(Kind.STEP)
        if self.context.progress.get(_POSTPONED):
            self.context.watchdog.sign(patiently=True)
            self._look(first, state, None)
        with _closing(self.context.batches.iterate(first, sharding=self.context.program.batch_sharding)) as stream:
            for done in range(first + 1, num_steps + 1):
                self.context.watchdog.sign(patiently=done == first + 1)
                profile(done, state)
                with self.context.clock.measure(Kind.INPUT):
                    batch = next(stream)
                state, metrics = self._step(state, batch)
                self.context.heartbeat.moved_to(done)
                self.reporter.add(done, metrics)
                self.context.watchdog.sign(patiently=True)
                self._look_and_save(done, state, batch)
        self.context.clock.enter(Kind.CHECKPOINT)  # what is left is to wait for the last save
        return state

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if self.compiled is None:
            with self.context.clock.measure(Kind.COMPILE):
                batch = self.context.task.prepare(batch)
                self.compiled = self.context.program.step.lower(state, batch).compile()
            return jax.block_until_ready(self.compiled(state, batch))
        batch = self.context.task.prepare(batch)
        # State and batch lie where the step wants them: whatever would move now would move on every step.
        with jax.transfer_guard("disallow"):
            return self.compiled(state, batch)

    def _look_and_save(self, done: int, state: TrainState, batch: Batch) -> None:
        """Evaluation, preview and checkpoint, where they are due after update `done`."""
        last = done == self.context.config.num_steps
        stopping = self.context.stop.received or self.context.checkpoints.reached_preemption()
        # Whoever asks to stop does not wait for long. But what the last step leaves out no later start would make up.
        postponed = stopping and not last
        evaluated = None if postponed else self._look(done, state, batch)
        improved = (
            evaluated is not None and self.context.config.keep_best > 0 and self.context.checkpoints.improves(evaluated)
        )
        if stopping or last or improved or _due(done, self.context.config.checkpoint_every):
            self._save(done, state, evaluated, postponed)
        if stopping:
            with self.context.clock.measure(Kind.CHECKPOINT):
                self.context.checkpoints.wait()
            if jax.process_index() == 0:
                _log.info("%s: stopped after step %d and saved; start again to go on", self.context.task.name, done)
            raise Preempted

    def _look(self, done: int, state: TrainState, batch: Batch | None) -> dict[str, float] | None:
        """Evaluation, whose metrics it returns, and preview, where they are due after update `done`."""
        config, last = self.context.config, done == self.context.config.num_steps
        evaluated = None
        evaluates = self.context.eval_batches is not None and config.eval_every > 0 and config.eval_batches > 0
        if evaluates and (last or _due(done, config.eval_every)):
            evaluated = self._evaluate(done, state)
        if config.preview_every > 0 and (last or _due(done, config.preview_every)):
            self._preview(done, state, batch)
        return evaluated

    def _save(self, done: int, state: TrainState, evaluated: Mapping[str, float] | None, postponed: bool) -> None:
        self.reporter.flush()  # Finds what is not finite before it is saved.
        for writer in self.context.writers:
            writer.flush()
        with self.context.clock.measure(Kind.CHECKPOINT):
            progress = self.reporter.progress() | {_POSTPONED: postponed}
            self.context.checkpoints.save(done, state, progress, evaluated)
        self.context.heartbeat.saved(done, self.context.checkpoints.steps)

    def _evaluate(self, done: int, state: TrainState) -> dict[str, float]:
        self.reporter.flush()
        with self.context.clock.measure(Kind.EVALUATE):
            prepared = map(self.context.task.prepare, self._held_out(self.context.config.eval_batches))
            metrics = self.context.task.evaluate(state.best_params, state.model_state, prepared)
        self._write(done, {f"eval/{name}": float(value) for name, value in metrics.items()})
        return metrics

    def _preview(self, done: int, state: TrainState, batch: Batch | None) -> None:
        self.reporter.flush()
        with self.context.clock.measure(Kind.PREVIEW):
            if self.context.eval_batches is not None:
                (batch,) = self._held_out(1)
            if batch is None:
                return  # postponed, and the training batch it was to show is gone
            image = self.context.task.preview(state.best_params, state.model_state, self.context.task.prepare(batch))
            if image is not None:
                for writer in self.context.writers:
                    writer.image(done, "preview", np.asarray(image))

    def _held_out(self, count: int) -> Iterator[Batch]:
        assert self.context.eval_batches is not None
        with _closing(self.context.eval_batches.epoch(count, sharding=self.context.program.batch_sharding)) as stream:
            yield from stream

    def _write_row(self, step: int, metrics: Mapping[str, float], steps: int, seconds: Mapping[str, float]) -> None:
        """Adds to a row what the host knows: speed, where the time went, memory, bad samples."""
        row = dict(metrics) | speed_row(self.context.heartbeat.now(), steps, seconds) | memory_row()
        bad = dict(self.context.batches.bad_counts)
        row["bad_samples"] = float(sum(bad.values()))
        row |= {f"bad_samples/{reason}": float(count) for reason, count in bad.items() if count}
        row["captions_cut"] = float(self.context.batches.captions_cut)
        row |= {f"samples/{part}": float(count) for part, count in self.context.batches.part_counts.items()}
        self._write(step, row)

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        with self.context.clock.measure(Kind.OTHER):
            row = dict(row) | time_row(self.context.heartbeat.times())
            for writer in self.context.writers:
                writer.scalars(step, row)
            if self.context.on_row is not None:
                self.context.on_row(step, row)

    def _newest(self) -> str:
        steps = self.context.checkpoints.steps
        return f"the newest checkpoint is of step {steps[-1]}" if steps else "no checkpoint was saved before"


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


@contextlib.contextmanager
def _closing(stream: Iterator[Batch]) -> Generator[Iterator[Batch], None, None]:
    """Ends a stream's workers with the block; a plain iterator has none."""
    try:
        yield stream
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
