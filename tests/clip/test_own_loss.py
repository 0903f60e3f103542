"""A contrastive loss of one's own: a class and an entry in a table, and all of CLIP's training takes it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import ClipStage, ClipTask
from clip_jax.losses import OBJECTIVES, ContrastiveLoss, ContrastiveObjective
from clip_jax.losses.base import chunk_of, normalize
from dalle_jax.config import from_config_dict, to_config_dict
from dalle_jax.errors import UserError
from dalle_jax.training.config import OptimizerConfig, TrainConfig
from tests.clip.small_clip import CONFIG, tokenize


class Hinge(ContrastiveObjective):
    """Every other caption is to score a margin less than an image's own."""

    has_bias = True

    def __call__(self, image, text, params, *, chunk=0, mask=None):
        chunk_of(len(text), chunk, "the batch")  # which refuses what does not divide; all are held at once here
        logits = jnp.exp(params["logit_scale"]) * normalize(image) @ normalize(text).T + params["logit_bias"]
        counts = jnp.ones(len(logits), bool) if mask is None else mask
        others = counts & ~jnp.eye(len(logits), dtype=bool)
        margins = jnp.where(others, jax.nn.relu(1 + logits - jnp.diag(logits)[:, None]), 0.0)
        logits = jnp.where(counts, logits, -jnp.inf)
        best_text, best_image = (jnp.argmax(x, axis=-1).astype(jnp.int32) for x in (logits, logits.T))
        return ContrastiveLoss(jnp.mean(jnp.sum(margins, axis=-1), where=counts), best_text, best_image)


@pytest.fixture
def stage(monkeypatch) -> ClipStage:
    monkeypatch.setitem(OBJECTIVES, "hinge", Hinge())
    model = dataclasses.replace(CONFIG, loss="hinge")
    return ClipStage(model, TrainConfig(batch_size=4, num_steps=2, optimizer=OptimizerConfig(learning_rate=1e-3)))


@pytest.fixture
def batch():
    size, length = CONFIG.vision.image_size, CONFIG.text.context_length
    text = np.full((4, length), CONFIG.text.end_id, np.int32)
    text[:, 0] = np.arange(4)
    image = np.random.default_rng(0).integers(0, 255, (4, size, size, 3), np.uint8)
    return {"image": jnp.asarray(image), "text": jnp.asarray(text)}


def test_it_is_trained_evaluated_and_written_down(stage, batch):
    task = ClipTask(stage)
    params, state = task.init(jax.random.key(0))
    params = nn.unbox(params)
    assert "logit_bias" in params
    objective = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (loss, (_, metrics)), gradients = objective(params, state, batch, key=jax.random.key(1), step=jnp.int32(0))
    assert np.isfinite(loss) and {"logit_scale", "logit_bias", "image_accuracy"} <= set(metrics)
    assert float(jnp.abs(gradients["vision"]["patch_embedding"]["kernel"]).max()) > 0
    assert task.constrain(params) is params
    assert np.isfinite(task.evaluate(params, state, [batch])["loss"])


def test_a_config_names_it(stage):
    again = from_config_dict(ClipStage, to_config_dict(stage), "config.clip")
    assert again.model.objective is OBJECTIVES["hinge"]


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_others_files_have_no_place_for_it(stage, tmp_path, format):
    params = nn.unbox(ClipTask(stage).init(jax.random.key(0))[0])
    with pytest.raises(UserError, match="know the losses softmax and sigmoid: a model of 'hinge' is not saved so"):
        clip_jax.save(clip_jax.Clip(stage.model, params, tokenize), tmp_path, format=format)


def test_one_that_is_not_there_is_named():
    wrong = to_config_dict(CONFIG)
    wrong.loss = "sigmiod"
    with pytest.raises(UserError, match="loss 'sigmiod'.*did you mean 'sigmoid'.*known: softmax, sigmoid"):
        from_config_dict(type(CONFIG), wrong, "config.clip.model")


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "hinge"])
def test_a_batch_in_which_no_pair_counts_adds_nothing(stage, batch, loss):
    task = ClipTask(dataclasses.replace(stage, model=dataclasses.replace(CONFIG, loss=loss)))
    params, state = task.init(jax.random.key(0))
    params, counted = nn.unbox(params), batch | {"mask": jnp.asarray([True, True, True, False])}
    expected = task.evaluate(params, state, [counted])
    found = task.evaluate(params, state, [counted, batch | {"mask": jnp.zeros(4, bool)}])
    assert np.isfinite(list(expected.values())).all() and found == expected
