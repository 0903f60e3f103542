"""The mesh: every device of the run along the axes `data`, `fsdp` and `tensor`.

Between the slices of a multi-slice pod links are ten times slower than inside them. Gradients of the `data` axis cross
them once a step; the other axes, whose weights and activations travel all the time, stay within a slice.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

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
      UserError: the axes do not multiply to the number of devices, or the slices are not those of the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _resolve((config.data, config.fsdp, config.tensor), len(devices))
    by_process = _check_slices(config.slices, shape[0], devices)
    if config.slices > 1:
        inside = (shape[0] // config.slices, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(
            inside, (config.slices, 1, 1), devices, process_is_granule=by_process, allow_split_physical_axes=True
        )
    elif devices[0].platform == "cpu":
        array = np.asarray(devices).reshape(shape)
    else:
        # Neighbours in the mesh become neighbours on the wires; an axis may use a part of a physical axis.
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def fit_mesh(config: MeshConfig, num_devices: int, slices: int, given: Collection[str] = ()) -> MeshConfig:
    """The mesh that is wanted, or the nearest one that so many devices of so many slices allow.

    Where its fixed axes ask for more devices than there are, or do not divide them, the largest one is halved until
    they do, and one axis takes what is left. The data axis spans the slices.

    Args:
      config: the mesh that is wanted.
      num_devices: of all slices.
      slices: parts with slow links between them.
      given: axes that stay as they are, so that the result may not fit; `make_mesh` refuses it then.
    """
    sizes = {axis: getattr(config, axis) for axis in AXES}
    if any(size < 1 and size != -1 for size in sizes.values()):
        return config  # of no devices at all
    fixed = {axis: size for axis, size in sizes.items() if size != -1}
    if "data" in fixed:
        fixed["data"] = -(-fixed["data"] // slices)  # of one slice, as the others are
    count = num_devices // slices
    own = [axis for axis in fixed if axis not in given]
    if own and len(fixed) == len(sizes) and math.prod(fixed.values()) != count:
        del fixed[own.pop(0)]
    while count % math.prod(fixed.values()) and any(fixed[axis] > 1 for axis in own):
        fixed[max(own, key=lambda axis: fixed[axis])] //= 2
    if "data" in fixed:
        fixed["data"] *= slices
    return dataclasses.replace(config, slices=slices, **{axis: fixed.get(axis, -1) for axis in AXES})


def fit_to_devices(config: MeshConfig) -> MeshConfig:
    """`fit_mesh` to all devices of all processes: what a run was trained on need not be here where it is used."""
    devices = jax.devices()
    # CPUs and the GPUs of hosts may lie in one slice however many say that they have one of their own.
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    return fit_mesh(config, len(devices), slices)


def _check_slices(slices: int, data: int, devices: Sequence[Any]) -> bool:
    """Whether processes stand for slices: where devices do not say which slice they are of, as on CPUs."""
    if slices < 1:
        raise UserError(f"config.mesh.slices must be 1 or more, not {slices}")
    found = {getattr(device, "slice_index", None) for device in devices}
    by_process = found == {None} or devices[0].platform == "cpu"
    if by_process:
        found = {device.process_index for device in devices}
    # Elsewhere one slice may span hosts, and descriptions of one slice's TPUs do not say that it is one.
    counted = devices[0].platform == "tpu" and not by_process
    if len(found) != slices and (slices > 1 or counted):
        what = "processes, each of which stands for a slice here" if by_process else "slices"
        raise UserError(
            f"config.mesh.slices is {slices}, but the devices are of {len(found)} {what}: "
            f"set --config.mesh.slices={len(found)}"
        )
    if data % slices:
        raise UserError(
            f"config.mesh.data of {data} does not divide over {slices} slices: the data axis crosses the links between "
            "them, so make it a multiple"
        )
    return by_process


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
