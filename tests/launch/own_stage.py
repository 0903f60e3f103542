"""A config file with a stage that the project does not have: how much of an image is lit, from its mean colour."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.config import to_config_dict
from dalle_jax.data.config import Augment, DataConfig, ShapesConfig
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.task import Task, row_weights, weighted_means
from launch.run.stages import STAGES, Stage, StagePlan


@dataclasses.dataclass(frozen=True)
class BrightnessStage:
    """`config.brightness` of a run."""

    train: TrainConfig
    threshold: float = 0.5
    """Levels above it are lit, 0 to 1."""


class BrightnessTask(Task):
    """Regression of the lit share by one dense layer."""

    name = "brightness"

    def __init__(self, config: BrightnessStage):
        self.config, self.model = config, nn.Dense(1)

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, 3)))["params"], {}

    def loss(self, params, model_state, batch, *, key, step):
        return jnp.mean(self._errors(params, batch)), (model_state, {})

    def evaluate(self, params, model_state, batches):
        def counted(batch):
            weights = row_weights(batch)
            return {"loss": (jnp.sum(weights * self._errors(params, batch)), jnp.sum(weights))}

        return weighted_means(map(jax.jit(counted), batches))

    def preview(self, params, model_state, batch):
        return np.asarray(batch["image"][0])

    def _errors(self, params, batch):
        image = batch["image"] / 255.0
        lit = jnp.mean(image > self.config.threshold, axis=(1, 2, 3))
        return jnp.square(self.model.apply({"params": params}, image.mean((1, 2)))[:, 0] - lit)


def plan_brightness(run, workdir, trained=True):
    """It sees images alone."""
    return StagePlan(BrightnessTask(run.brightness), run.brightness.train, Augment.NONE, run.data.image_size, None)


STAGES["brightness"] = Stage(BrightnessStage, plan_brightness)


def get_config():
    """Two steps on drawn scenes."""
    train = TrainConfig(
        batch_size=8, num_steps=2, optimizer=OptimizerConfig(learning_rate=1e-2), log_every=1, eval_every=2,
        eval_batches=1, preview_every=2, checkpoint_every=2,
    )  # fmt: skip
    data = DataConfig(image_size=64, shapes=ShapesConfig(num_train=256, num_eval=32))
    return to_config_dict({"seed": 0, "data": data, "mesh": MeshConfig(), "brightness": BrightnessStage(train)})
