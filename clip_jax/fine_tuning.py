"""Published weights as what a run begins with: its model must be theirs, and they are read straight onto the mesh."""

import dataclasses

import jax
from etils import epath

from clip_jax.config import ClipConfig
from clip_jax.weights import Published, open_published
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoint import LoadedParams
from dalle_jax.training.state import TrainState
from dalle_jax.training.workdir import differing_keys

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


def open_base(config: ClipConfig, path: epath.PathLike) -> Published:
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
    if differing:
        shown = ", ".join(f"{key} ({_get(theirs, key)} there, {_get(ours, key)} here)" for key in differing)
        raise UserError(
            f"{path} is another model than config.clip.model: {shown}; set these, or take the model from the weights "
            f"with --config=configs/clip_finetune.py:{path}"
        )
    return published


def read_base(config: ClipConfig, path: epath.PathLike, state: TrainState) -> LoadedParams:
    """Reads published weights onto the shardings of a run's abstract state, a device's part at a time."""
    wanted = {"params": state.params, **state.model_state}
    variables = open_base(config, path).read(shardings=jax.tree.map(lambda x: x.sharding, wanted))
    params = variables.pop("params")
    return LoadedParams(params, variables, step=0)


def _get(config: dict, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else value
    return getattr(value, "value", value)
