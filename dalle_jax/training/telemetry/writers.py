"""Where a run's numbers and images go: JSON lines, TensorBoard, the terminal, and Weights & Biases if asked."""

import abc
import io
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from tensorboardX import event_file_writer, record_writer, summary
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from dalle_jax.errors import UserError
from dalle_jax.storage import Appended, is_remote
from dalle_jax.training.telemetry.attempts import duration

Row = Mapping[str, float]

SLOW_INPUT = 0.2
"""Share of the time for steps spent waiting for batches from which on a run is said to wait for its data."""


class Writer(abc.ABC):
    """A destination. A writer opened at step n forgets what an interrupted run wrote after n."""

    @abc.abstractmethod
    def scalars(self, step: int, row: Row) -> None:
        """Writes one row of numbers."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes one image, uint8 [height, width, 3]."""
        del step, name, image

    def flush(self) -> None:
        """Brings what was written to where it stays, if the process is killed; called before a checkpoint."""
        return None

    def close(self) -> None:
        """Writes what is held back, and closes files."""
        return None


class JsonLines(Writer):
    """`metrics.jsonl`: one object a row, in order of steps; a number that is not finite becomes null."""

    def __init__(self, path: epath.PathLike, step: int, *, evaluates: bool = False):
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)

        def is_kept(row: dict[str, Any]) -> bool:
            again = evaluates and row["step"] == step and any(name.startswith("eval/") for name in row)
            return row["step"] <= step and not again

        kept = "".join(json.dumps(row) + "\n" for row in read_rows(path) if is_kept(row))
        self._file = Appended(path, kept.encode())

    def scalars(self, step: int, row: Row) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write((json.dumps({"step": step, **finite}) + "\n").encode())
        self._file.flush()

    def flush(self) -> None:
        self._file.flush(now=True)

    def close(self) -> None:
        self._file.close()


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, none where there is no file; a line that was cut short by a crash is left out."""
    path, rows = epath.Path(path), []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class TensorBoard(Writer):
    """Event files. Written in this thread: `SummaryWriter`'s own would hang the run once the disk is full."""

    def __init__(self, directory: epath.PathLike, step: int):
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(directory / "events"))
        # Tells TensorBoard to drop what older files hold from the next step on.
        self._write(step + 1, session_log={"status": "START"})

    def scalars(self, step: int, row: Row) -> None:
        for name, value in row.items():
            self._write(step, summary=summary.scalar(name, value))
        self._writer.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._write(step, summary=summary.image(name, image, dataformats="HWC"))
        self._writer.flush()

    def _write(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)  # pyrefly: ignore[missing-attribute]
        self._writer.write_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _InBucket:
    """How tensorboardX opens event files in a bucket, in place of its own way, which needs another library."""

    def open(self, path: str) -> Appended:
        return Appended(path, b"")

    def directory_check(self, path: str) -> None:
        return None


record_writer.register_writer_factory("gs", _InBucket())


class Images(Writer):
    """`<directory>/step_0000100.png`."""

    def __init__(self, directory: epath.PathLike):
        self._directory = epath.Path(directory)

    def scalars(self, step: int, row: Row) -> None:
        del step, row

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        del name
        self._directory.mkdir(parents=True, exist_ok=True)
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, format="PNG")
        (self._directory / f"step_{step:07d}.png").write_bytes(encoded.getvalue())


class Terminal(Writer):
    """A progress bar with the time left on a terminal, plain lines elsewhere."""

    SHOWN = ("loss", "learning_rate", "grad_norm", "steps_per_second", "mfu")

    def __init__(self, name: str, step: int, num_steps: int):
        self._name, self._num_steps = name, num_steps
        self._bar = tqdm(desc=name, total=num_steps, initial=step, unit="step") if sys.stderr.isatty() else None

    def scalars(self, step: int, row: Row) -> None:
        evaluated = {name: value for name, value in row.items() if name.startswith("eval/")}
        shown = evaluated or {name: row[name] for name in self.SHOWN if name in row}
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if row.get("time_in_data", 0.0) >= SLOW_INPUT:
            text += f"  waiting for data {100 * row['time_in_data']:.0f}%"
        if row.get("bad_samples"):
            text += f"  bad samples {row['bad_samples']:.0f}"
        if self._bar is None:
            rate = row.get("steps_per_second")
            left = f"  {duration((self._num_steps - step) / rate)} left" if rate else ""
            sys.stderr.write(f"{self._name} {step}/{self._num_steps}  {text}{left}\n")
            sys.stderr.flush()
        elif evaluated:
            self._bar.write(f"{self._name} {step}/{self._num_steps}  {text}", file=sys.stderr)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class WeightsAndBiases(Writer):
    """A run of the `wandb` package, which is imported only where it is asked for."""

    def __init__(self, project: str, name: str, directory: epath.PathLike):
        try:
            import wandb  # pyrefly: ignore[missing-import]
        except ImportError:
            raise UserError("Weights & Biases was asked for but is not installed: pip install wandb") from None
        self._wandb = wandb
        # The id is the folder, so that a resumed run goes on in the same page.
        run_id = "".join(c if c.isalnum() else "-" for c in str(epath.Path(directory).resolve()))[-64:]
        local = None if is_remote(directory) else str(directory)
        self._run = wandb.init(project=project, name=name, id=run_id, dir=local, resume="allow")

    def scalars(self, step: int, row: Row) -> None:
        self._run.log(dict(row), step=step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_writers(
    name: str, directory: epath.PathLike, step: int, num_steps: int, wandb: str = "", *, evaluates: bool = False
) -> list[Writer]:
    """The destinations of one stage, for the one process that writes.

    Args:
      name: of the stage.
      directory: its folder in the work directory.
      step: updates made so far.
      num_steps: length of the run.
      wandb: project of Weights & Biases; empty: none.
      evaluates: it begins with the evaluation of `step`: what an earlier start, which came no further, wrote of that is
        forgotten.
    """
    directory = epath.Path(directory)
    writers: list[Writer] = [
        JsonLines(directory / "metrics.jsonl", step, evaluates=evaluates),
        TensorBoard(directory / "tensorboard", step),
        Images(directory / "previews"),
        Terminal(name, step, num_steps),
    ]
    if wandb:
        writers.append(WeightsAndBiases(wandb, name, directory))
    return writers
