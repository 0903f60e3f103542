"""Weights that a run begins with: its model must be theirs, and they are read straight onto the mesh.

The size of the images may be another one: the positions of the image tower are then interpolated.
"""

import dataclasses
import os
from collections.abc import Callable

import jax
from etils import epath

from clip_jax.config import ClipConfig, ClipStage, VisionConfig
from clip_jax.towers.positions import as_for, can_resize, fit_positions
from clip_jax.weights.opening import Published, open_published
from dalle_jax.config import differing_keys, from_config_dict
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.reader import LoadedParams, load_params
from dalle_jax.training.checkpoints.workdir import read_workdir
from dalle_jax.training.state import TrainState
from dalle_jax.training.task import Params

FREE = (
    "dropout",
    "dtype",
    "init_logit_bias",
    "init_logit_scale",
    "max_logit_scale",
    "patch_dropout",
    "remat",
    "scan",
)
"""Last parts of the keys of a model's config that say how it is trained, not what it is."""


def open_init_from(config: ClipConfig, path: epath.PathLike) -> Published:
    """Opens published weights for a run with a model; no numbers are read yet.

    Args:
      config: of the run's model. Its activation is that of a bare file, which cannot tell.
      path: see `open_published`.

    Raises:
      UserError: they are of another model, and the message lists what differs; or see `open_published`.
    """
    published = open_published(path, activation=config.text.transformer.activation)
    theirs, ours = (dataclasses.asdict(each) for each in (published.config, config))
    differing = [key for key in differing_keys(theirs, ours) if key.split(".")[-1] not in FREE]
    resized = differing == ["vision.image_size"] and can_resize(published.config.vision, config.vision)
    if differing and not resized:
        shown = ", ".join(f"{key} ({_get(theirs, key)} there, {_get(ours, key)} here)" for key in differing)
        raise UserError(
            f"{path} is another model than config.clip.model: {shown}; set these, or take the model from the weights "
            f"with --config=configs/clip_finetune.py:{path}"
        )
    return published


def read_init_from(config: ClipConfig, path: epath.PathLike, state: TrainState) -> LoadedParams:
    """Reads published weights onto the shardings of a run's abstract state, a device's part at a time."""
    base = open_init_from(config, path)

    def read(params: Params) -> LoadedParams:
        wanted = {"params": params, **state.model_state}
        variables = base.read(shardings=jax.tree.map(lambda x: x.sharding, wanted))
        return LoadedParams(variables.pop("params"), variables, step=0)

    return _read(read, base.config.vision, config.vision, state, os.fspath(path))


def read_run(config: ClipConfig, path: epath.PathLike, state: TrainState) -> LoadedParams:
    """The same of a run of ours.

    Args:
      config: of the new run's model.
      path: the work directory of the other one.
      state: abstract, of the new run.

    Raises:
      UserError: it has no CLIP, or that of another model; or see `load_params`.
    """
    return _read(
        lambda params: load_params(epath.Path(path) / "clip", shardings=params),
        _vision_of_run(path) or config.vision,
        config.vision,
        state,
        os.fspath(path),
    )


def params_of_run(config: ClipConfig, path: epath.PathLike, params: Params) -> Params:
    """Abstract parameters of a new run as `read_run` reads them: with the other run's positions where it fits them."""
    old = _vision_of_run(path)
    return params if old is None or not _resized(old, config.vision) else as_for(old, params)


def _vision_of_run(path: epath.PathLike) -> VisionConfig | None:
    stage = read_workdir(path).get("clip")
    return from_config_dict(ClipStage, stage, "config.clip").model.vision if stage else None


def _resized(old: VisionConfig, new: VisionConfig) -> bool:
    return old.num_patches != new.num_patches and can_resize(old, new)


def _read(
    read: Callable[[Params], LoadedParams], old: VisionConfig, new: VisionConfig, state: TrainState, where: str
) -> LoadedParams:
    if not _resized(old, new):
        return read(state.params)
    loaded = read(as_for(old, state.params))
    sharding = state.params["vision"]["position_embedding"].sharding
    return loaded._replace(params=fit_positions(loaded.params, old, new, sharding, where))


def _get(config: dict, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else value
    return getattr(value, "value", value)
