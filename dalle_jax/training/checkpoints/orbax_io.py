"""Reads checkpoints with Orbax, and finds what is damaged in them.

A checkpoint is a directory `checkpoints/<step>/` of one item each for `params`, `ema` and `model_state` (where there
are any), `optimizer`, and `progress` (JSON, with a checksum of every array).
"""

import contextlib
import os
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dalle_jax.errors import DISK_FULL, UserError
from dalle_jax.training.checkpoints.checksums import changed
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.parallel.processes import gather
from dalle_jax.training.trees import named_leaves

T = TypeVar("T")

CHECKSUMS = "checksums"
"""Key of the progress, under which the sums of all arrays are saved."""

_PASSING = "RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED"  # TensorStore's words


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read, by this process or by another, or whose arrays are not what was saved."""


def read_together(read: Callable[[], T]) -> T:
    """What `read` returns, where it succeeds in all processes.

    Raises:
      DamagedCheckpoint: in all processes, where it failed in any for the files' sake.
      Exception: as it came, where another try, right or memory would mend it: the files may be whole.
    """
    result: Any = None
    damage: str | None = None
    try:
        result = read()
    except UserError:
        raise
    except DamagedCheckpoint as error:
        damage = str(error)
    except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
        damage = _of_damage(error)
    readable = gather(damage is None)
    if damage is None and not all(readable):
        damage = f"process {readable.index(False)} cannot read it"
    if damage is not None:
        raise DamagedCheckpoint(damage)
    return result


def check_unchanged(trees: Mapping[str, Any], progress: dict[str, Any]) -> None:
    """Compares arrays with the checksums in `progress`, and takes these out of it.

    Raises:
      DamagedCheckpoint: they are not what was saved.
    """
    wrong = changed(trees, progress.pop(CHECKSUMS, {}))
    if wrong:
        raise DamagedCheckpoint(f"{len(wrong)} arrays are not what was saved, such as {wrong[0]}")


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


def checkpoint_folder(stage_dir: epath.PathLike) -> epath.Path:
    """Where a stage's checkpoints are; absolute, since Orbax takes no other path (and says so only when it saves)."""
    path = os.fspath(stage_dir)
    return epath.Path(path if "://" in path else os.path.abspath(path)) / "checkpoints"


def metadata_of(directory: epath.Path, name: str) -> Any:
    """Names, shapes and dtypes of one item, from its index alone."""
    if not (directory / name).exists():
        raise FileNotFoundError(f"{directory / name} is missing")
    index = ocp.PyTreeCheckpointHandler().metadata(directory / name)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), index.tree)


def placed(tree: Any, sharding: jax.sharding.Sharding | None) -> Any:
    """Shapes and dtypes of a tree, all with one sharding; None: arrays on the host."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def read_items(directory: epath.Path, wanted: Mapping[str, Any], progress: bool = True) -> tuple[dict[str, Any], dict]:
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
def full_disk_told(directory: epath.Path) -> Generator[None, None, None]:
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
    return one_line(error)


def one_line(error: Exception) -> str:
    """An exception of any length as the end of a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
