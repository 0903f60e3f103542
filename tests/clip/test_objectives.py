"""The three objectives of the efficiency figure: their losses by hand, what each may see, and that each learns."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import ClipConfig, ClipStage, TextConfig, VisionConfig, resnet_config, tower_config
from clip_jax.objectives import TASKS, Objective, word_targets
from dalle_jax.errors import UserError
from dalle_jax.training.config import OptimizerConfig, TrainConfig
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import TrainState
from dalle_jax.training.step import make_train_step

START, END, T = 2, 3, 6
CONFIG = ClipConfig(
    16, VisionConfig(16, 8, tower_config(1, 32, head_dim=16)), TextConfig(9, T, END, tower_config(1, 32, head_dim=16))
)
STAGE = ClipStage(CONFIG, TrainConfig(12, 1, OptimizerConfig(1e-3)))
CAPTIONS = np.array([[START, 4, 5, END, 0, 0], [START, 4, 6, END, 0, 0], [START, 7, 4, 8, END, 0]], np.int32)
COLOURS = np.array([[200, 20, 20], [20, 200, 20], [20, 20, 200]], np.uint8)
STEP = {"key": jax.random.key(0), "step": jnp.int32(0)}


def batch(rng, count=12):
    label = np.arange(count) % 3
    noise = rng.integers(0, 50, (count, 16, 16, 3), np.uint8)
    arrays = {"image": COLOURS[label][:, None, None] + noise, "text": CAPTIONS[label], "label": label.astype(np.int32)}
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def task_of(objective):
    return TASKS[objective](STAGE, CAPTIONS[:, None])


def init(task):
    return nn.meta.unbox(jax.jit(lambda key: task.init(key)[0])(jax.random.key(0)))


@pytest.mark.parametrize("objective", Objective)
def test_each_objective_learns_to_classify(objective):
    task, rng = task_of(objective), np.random.default_rng(0)
    params, optimizer = init(task), optax.adam(3e-3)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, batch):
        gradients = jax.grad(lambda params: task.loss(params, {}, batch, **STEP)[0])(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return task.constrain(optax.apply_updates(params, updates)), opt_state

    held_out = [batch(np.random.default_rng(1)) for _ in range(2)]
    before = task.evaluate(params, {}, held_out)
    for _ in range(60):
        params, opt_state = step(params, opt_state, batch(rng))
    after = task.evaluate(params, {}, held_out)
    assert after["zero_shot_accuracy"] == 1.0 and after["loss"] < before["loss"] - 0.3, (before, after)
    assert before["zero_shot_accuracy"] < 1.0


def test_labels_of_no_class_are_refused():
    task = task_of(Objective.WORDS)
    rows = batch(np.random.default_rng(0))
    with pytest.raises(UserError, match="an image has the label 3, and there are 3 classes"):
        task.evaluate(init(task), {}, [rows | {"label": rows["label"] + 1}])


def test_word_targets():
    ids = np.array([[START, 4, 5, 4, END, 7], [START, END, 5, 5, 5, 5]])
    targets = np.asarray(word_targets(jnp.asarray(ids), END, 9))
    np.testing.assert_allclose(targets, [[0, 0, 0, 0, 0.5, 0.5, 0, 0, 0], [0] * 9])


def test_bag_of_words_prediction_by_hand():
    task = task_of(Objective.WORDS)
    params = init(task)
    images = batch(np.random.default_rng(0), 3)
    found = np.asarray(task.model.apply({"params": params}, task._pixels(images["image"])))
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-5)
    words = [[4, 5], [4, 6], [4, 7, 8]]
    expected = -np.mean([found[i, w].mean() for i, w in enumerate(words)])
    np.testing.assert_allclose(task.loss(params, {}, images, **STEP)[0], expected, rtol=1e-5)
    scores = [[found[i, w].mean() for w in words] for i in range(3)]
    np.testing.assert_allclose(task.scores(params, {}, images["image"]), scores, rtol=1e-5)


def test_caption_model_by_hand_and_causality():
    task = task_of(Objective.CAPTION)
    params, images = init(task), batch(np.random.default_rng(0), 3)
    pixels = task._pixels(images["image"])

    def likelihoods(ids):
        return task.model.apply({"params": params}, pixels, jnp.asarray(ids))

    found, inside = likelihoods(images["text"])
    assert inside.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert not np.asarray(found)[inside == 0].any()
    np.testing.assert_allclose(task.loss(params, {}, images, **STEP)[0], -np.sum(found) / 10, rtol=1e-5)
    # A token's likelihood depends on those before it: those after it may be any.
    changed = np.array(images["text"])
    changed[:, 2] = 8
    other, _ = likelihoods(changed)
    np.testing.assert_allclose(other[:, 0], found[:, 0], rtol=1e-5)
    assert np.abs(np.asarray(other - found)[:, 2]).max() > 1e-3
    # All choices of a token together have probability 1.
    every = [
        np.asarray(likelihoods(np.where(np.arange(T) == 2, v, images["text"]))[0])[:, 1] for v in range(9) if v != END
    ]
    assert (np.exp(every).sum(axis=0) < 1).all()
    end = np.where(np.arange(T) == 2, END, images["text"])
    np.testing.assert_allclose(np.exp([*every, np.asarray(likelihoods(end)[0])[:, 1]]).sum(axis=0), 1, rtol=1e-4)
    scores = np.asarray(task.scores(params, {}, images["image"]))
    for c in range(3):
        own, _ = likelihoods(np.repeat(CAPTIONS[c : c + 1], 3, axis=0))
        np.testing.assert_allclose(scores[:, c], np.sum(own, axis=-1), rtol=1e-4)


def test_several_captions_of_a_class_are_averaged():
    twice = np.stack([CAPTIONS, CAPTIONS[[1, 2, 0]]], axis=1)
    for objective in (Objective.CAPTION, Objective.WORDS):
        one, two = task_of(objective), TASKS[objective](STAGE, twice)
        params, images = init(one), batch(np.random.default_rng(0), 3)["image"]
        single = np.asarray(one.scores(params, {}, images))
        np.testing.assert_allclose(two.scores(params, {}, images), (single + single[:, [1, 2, 0]]) / 2, rtol=1e-4)


def test_contrastive_scores_are_cosines():
    task = task_of(Objective.CONTRASTIVE)
    assert task.config.text.tower.value == "bag_of_words"
    scores = np.asarray(task.scores(init(task), {}, batch(np.random.default_rng(0))["image"]))
    assert scores.shape == (12, 3) and np.abs(scores).max() <= 1 + 1e-6
    other = dataclasses.replace(STAGE, model=task.config)
    assert TASKS[Objective.CONTRASTIVE](other, CAPTIONS[:, None]).config == task.config


@pytest.mark.parametrize("objective", Objective)
def test_a_step_in_micro_batches(objective):
    """Every image is contrasted with all captions of the batch, not with those of its part alone."""
    rows = batch(np.random.default_rng(0))
    if objective is Objective.CAPTION:  # whose mean is over tokens: equally many in every part
        rows["text"] = jnp.asarray(CAPTIONS[np.arange(12) % 2])
    found = []
    for micro_batches in (1, 4):
        stage = dataclasses.replace(STAGE, train=dataclasses.replace(STAGE.train, micro_batches=micro_batches))
        found.append(one_step(TASKS[objective](stage, CAPTIONS[:, None]), stage, rows))
    (whole, whole_metrics), (parts, metrics) = found
    assert metrics["loss"] == pytest.approx(float(whole_metrics["loss"]), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(whole_metrics["grad_norm"]), rel=1e-4)


def one_step(task, stage, rows):
    """The state after a step of training, and its metrics."""
    params, model_state = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))
    optimizer = make_optimizer(stage.train.optimizer, 1)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), model_state, None, jax.random.key(0))
    return jax.jit(make_train_step(task, stage.train, optimizer))(state, rows)


# A ResNet, as the paper's figure has it


@pytest.mark.parametrize("objective", Objective)
def test_a_resnets_statistics_move_in_training_and_are_read_in_evaluation(objective):
    vision = resnet_config(32, (1, 1, 1, 1), 4, head_dim=32)
    stage = dataclasses.replace(STAGE, model=dataclasses.replace(CONFIG, vision=vision))
    task = TASKS[objective](stage, CAPTIONS[:, None])
    rows = batch(np.random.default_rng(0))
    rows["image"] = jnp.repeat(jnp.repeat(rows["image"], 2, axis=1), 2, axis=2)
    before = nn.meta.unbox(jax.jit(task.init)(jax.random.key(0)))[1]
    state, metrics = one_step(task, stage, rows)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, state.model_state)
    assert before["batch_stats"]["vision"] and all(jax.tree.leaves(moved))
    trained, untouched = (task.evaluate(state.params, stats, [rows]) for stats in (state.model_state, before))
    assert trained["loss"] != untouched["loss"]  # and not the batch's own
    cut = dataclasses.replace(stage, train=dataclasses.replace(stage.train, micro_batches=2))
    with pytest.raises(UserError, match="statistics of its whole batch"):
        TASKS[objective](cut, CAPTIONS[:, None])


@pytest.mark.parametrize("objective", Objective)
def test_evaluation_counts_what_it_has_seen_once(objective):
    """Captions of two lengths, in batches of one length each, the last filled up."""
    task, rows = task_of(objective), batch(np.random.default_rng(0), 6)
    params, order = init(task), np.array([0, 1, 3, 2, 5, 4])  # the long captions are those of label 2

    def part(places, mask):
        return {name: x[np.array(places)] for name, x in rows.items()} | {"mask": jnp.asarray(mask)}

    yes, no = True, False
    if objective is Objective.CONTRASTIVE:  # its loss is of a batch: one that is filled up against one that is not
        cut = [part([*range(6), 0, 1], [yes] * 6 + [no] * 2)]
    else:
        cut = [part(order[:4], [yes] * 4), part([*order[4:], 0, 1], [yes, yes, no, no])]
    assert task.evaluate(params, {}, cut) == pytest.approx(task.evaluate(params, {}, [rows]), rel=1e-5)
