"""The mesh: every device of the run along the axes `data`, `fsdp` and `tensor`."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dalle_jax.errors import UserError
from dalle_jax.training.config import MeshConfig

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as `config` says.

    Args:
      config: sizes of the axes; one of them may be -1.
      devices: which ones; None: all devices of all processes.

    Returns:
      A mesh of axes `("data", "fsdp", "tensor")`, each left to the compiler (`AxisType.Auto`): under explicit axes,
      JAX's default, embedding gathers and sharded contractions raise.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _resolve((config.data, config.fsdp, config.tensor), len(devices))
    if devices[0].platform == "cpu":
        array = np.asarray(devices).reshape(shape)
    else:
        # Neighbours in the mesh become neighbours on the wires; an axis may use a part of a physical axis.
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _resolve(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
    text = "x".join(str(size) for size in shape)
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(
            f"config.mesh is {text}: each of {', '.join(AXES)} must be at least 1, and at most one of them -1"
        )
    known = math.prod(size for size in shape if size != -1)
    if count % known or (-1 not in shape and known != count):
        advice = "set one axis to -1 to give it what is left" if count % known == 0 else "choose sizes that divide them"
        raise UserError(f"config.mesh of {text} (data x fsdp x tensor) does not fit the {count} devices here: {advice}")
    return tuple(count // known if size == -1 else size for size in shape)
