"""Locked towers, dropped patches, layers computed again: what a step does and does not do."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import ClipConfig, ClipModel, ClipStage, ClipTask, Lock, TextConfig, VisionConfig, tower_config
from clip_jax.flops import image_flops, step_flops, text_flops, transformer_flops
from clip_jax.losses.accumulation import accumulated_gradients
from clip_jax.model import init_params
from clip_jax.towers.vit import draw_patches
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import OptimizerConfig, TrainConfig
from dalle_jax.training.freezing import Freezing
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.state import TrainState
from dalle_jax.training.step import make_train_step
from dalle_jax.training.trees import named_leaves

CONFIG = ClipConfig(
    16,
    VisionConfig(32, 8, tower_config(3, 32, head_dim=16)),
    TextConfig(50, 12, 3, tower_config(1, 32, head_dim=16)),
)
BATCH = 8


def stage(**changes):
    vision = dataclasses.replace(CONFIG.vision, **changes.pop("vision", {}))
    model = dataclasses.replace(CONFIG, vision=vision)
    optimizer = OptimizerConfig(learning_rate=0.01, weight_decay=0.2)
    return ClipStage(model, TrainConfig(BATCH, 10, optimizer), **changes)


@pytest.fixture(scope="module")
def params():
    return nn.meta.unbox(jax.jit(partial(init_params, CONFIG))(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    text = rng.integers(4, 50, (BATCH, 12), dtype=np.int32)
    text[:, 5] = 3
    return {"image": jnp.asarray(rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)), "text": jnp.asarray(text)}


def one_step(stage, params, batch):
    """The state after a step, and useful operations of the program before XLA simplifies it."""
    config = stage.locked_train
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    state = TrainState(jnp.int32(0), params, optimizer.init(params), {}, None, jax.random.key(0))
    lowered = jax.jit(make_train_step(ClipTask(stage), config, optimizer)).lower(state, batch)
    after, metrics = lowered.compile()(state, batch)
    return after, metrics, lowered.cost_analysis()["flops"]


def changed(before, after):
    before, after = named_leaves(before), named_leaves(after)
    return {name for name in before if bool(jnp.any(before[name] != after[name]))}


def test_a_locked_tower_keeps_still_and_is_not_differentiated(params, batch):
    after, metrics, flops = one_step(stage(locked_tower=Lock.IMAGE), params, batch)
    _, free_metrics, free_flops = one_step(stage(), params, batch)
    assert changed(params, after.params) == {name for name in named_leaves(params) if not name.startswith("vision")}
    assert not any("vision" in name for name in named_leaves(after.opt_state))
    assert metrics["loss"] == pytest.approx(float(free_metrics["loss"]), rel=1e-6)
    assert metrics["grad_norm"] < free_metrics["grad_norm"]
    assert flops < 0.75 * free_flops  # each scanned stack is counted as one block


def test_a_locked_text_tower(params):
    names = named_leaves(Freezing.of(stage(locked_tower=Lock.TEXT).locked_train.optimizer).trained(params))
    assert names.keys() == {name for name in named_leaves(params) if not name.startswith("text")}


def test_the_last_blocks_of_a_locked_tower_train(params):
    locked = stage(locked_tower=Lock.IMAGE, unlocked_layers=1)
    found = named_leaves(Freezing.of(locked.locked_train.optimizer).trained(params))
    ours = {name: leaf for name, leaf in found.items() if name.startswith("vision")}
    assert {name.split("/")[1] for name in ours} == {"transformer", "norm_post", "kernel"}
    assert all(leaf.shape[0] == 1 for name, leaf in ours.items() if "transformer" in name)
    assert locked.trains(Lock.IMAGE) and not stage(locked_tower=Lock.IMAGE).trains(Lock.IMAGE)
    for lock, layers in ((Lock.NONE, 1), (Lock.IMAGE, 3), (Lock.IMAGE, -1)):
        with pytest.raises(ValueError, match="unlocked_layers"):
            stage(locked_tower=lock, unlocked_layers=layers)


def test_a_wholly_locked_tower_is_run_as_in_evaluation(params, batch):
    dropping = stage(vision={"patch_dropout": 0.5}, locked_tower=Lock.IMAGE)
    loss = {s: float(ClipTask(s).loss(params, {}, batch, key=jax.random.key(1), step=jnp.int32(0))[0])
            for s in (dropping, stage(locked_tower=Lock.IMAGE))}  # fmt: skip
    assert len(set(loss.values())) == 1


# Patches


def test_patches_are_drawn_without_repetition_and_evenly():
    kept = np.asarray(draw_patches(jax.random.key(0), (4000, 16), 4))
    assert kept.shape == (4000, 4) and all(len(set(row)) == 4 for row in kept.tolist())
    counts = np.bincount(kept.ravel(), minlength=16)
    assert abs(counts - 1000).max() < 4 * np.sqrt(1000 * 0.75)  # four deviations
    assert VisionConfig(32, 8, CONFIG.vision.transformer, patch_dropout=0.75).kept_patches == 4
    assert VisionConfig(32, 8, CONFIG.vision.transformer, patch_dropout=0.99).kept_patches == 1
    with pytest.raises(ValueError, match="patch_dropout"):
        VisionConfig(32, 8, CONFIG.vision.transformer, patch_dropout=1.0)


def test_the_class_token_and_the_kept_patches_are_what_the_tower_reads(params, batch):
    """What is dropped has no influence, what is kept has, each at its own position."""
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, patch_dropout=0.5))
    pixels = batch["image"].astype(jnp.float32) / 255

    @jax.jit
    def features(pixels):
        rngs = {"dropout": jax.random.key(3)}
        return ClipModel(config).apply({"params": params}, pixels, train=True, rngs=rngs, method="encode_image")

    sensitivity = jnp.abs(jax.jit(jax.jacrev(lambda x: features(x).sum(axis=1)))(pixels))
    own = jnp.stack([sensitivity[i, i] for i in range(BATCH)])
    patch = own.reshape(BATCH, 4, 8, 4, 8, 3).sum(axis=(2, 4, 5)).reshape(BATCH, 16)
    assert np.asarray((patch > 0).sum(axis=1)).tolist() == [8] * BATCH
    assert len({tuple(row) for row in np.asarray(patch > 0).tolist()}) > 1
    evaluated = ClipModel(config).apply({"params": params}, pixels, method="encode_image")
    whole = ClipModel(CONFIG).apply({"params": params}, pixels, method="encode_image")
    np.testing.assert_array_equal(evaluated, whole)


def test_dropping_depends_on_the_key_alone(params, batch):
    task = ClipTask(stage(vision={"patch_dropout": 0.5}))
    loss = jax.jit(lambda key: task.loss(params, {}, batch, key=key, step=jnp.int32(0))[0])
    assert loss(jax.random.key(0)) == loss(jax.random.key(0)) != loss(jax.random.key(1))
    assert task.evaluate(params, {}, [batch]) == ClipTask(stage()).evaluate(params, {}, [batch])


def test_accumulation_drops_the_same_patches_in_both_passes(params, batch):
    """The gradient is that of the objective on the features of the first pass, by plain differentiation."""
    task, key, parts = ClipTask(stage(vision={"patch_dropout": 0.5})), jax.random.key(5), 2

    def plain(p):
        cut = jax.tree.map(lambda x: [x[i::parts] for i in range(parts)], batch)
        keys = jax.random.split(key, parts)
        micro = [{name: cut[name][i] for name in ("image", "text")} for i in range(parts)]
        pairs = [task._encode(p, {}, micro[i], keys[i])[0] for i in range(parts)]
        merged = [jnp.stack(side, axis=1).reshape(BATCH, -1) for side in zip(*pairs, strict=True)]
        return task._objective(p, tuple(merged))[0]

    expected_value, expected = jax.jit(jax.value_and_grad(plain))(params)
    gradients, (_, metrics) = jax.jit(
        lambda p: task.gradients(p, {}, batch, key=key, step=jnp.int32(0), micro_batches=parts)
    )(params)
    assert metrics["loss"] == pytest.approx(float(expected_value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected)


def test_accumulation_gives_each_part_a_key_of_its_own():
    seen = accumulated_gradients(
        lambda p, b, key: p * b["x"] * jax.random.uniform(key),
        lambda p, features: (jnp.sum(features), features),
        jnp.float32(1.0),
        {"x": jnp.ones(4)},
        jax.random.key(0),
        2,
    )
    gradient, (value, features) = seen
    assert gradient == value and len(set(np.asarray(features).tolist())) == 2


# Cost


@pytest.mark.parametrize("remat", [Remat.DOTS, Remat.FULL])
def test_computing_layers_again_changes_nothing(params, batch, remat):
    def gradients(config):
        task = ClipTask(dataclasses.replace(stage(), model=config))
        return jax.jit(
            lambda p: task.gradients(p, {}, batch, key=jax.random.key(0), step=jnp.int32(0), micro_batches=1)
        )(params)

    towers = {
        side: dataclasses.replace(
            getattr(CONFIG, side), transformer=dataclasses.replace(getattr(CONFIG, side).transformer, remat=remat)
        )
        for side in ("vision", "text")
    }
    again, plain = gradients(dataclasses.replace(CONFIG, **towers)), gradients(CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again, plain)


def test_useful_operations_of_a_step():
    image, text = image_flops(CONFIG.vision, 16), text_flops(CONFIG.text, 16)
    logits = 3 * 2 * 2 * BATCH * 16
    assert step_flops(stage(), BATCH) == BATCH * (3 * (image + text) + logits)
    assert step_flops(stage(locked_tower=Lock.IMAGE), BATCH) == BATCH * (image + 3 * text + logits)
    assert step_flops(stage(locked_tower=Lock.TEXT), BATCH) == BATCH * (3 * image + text + logits)
    block = transformer_flops(CONFIG.vision.transformer, 17) // 3
    one = step_flops(stage(locked_tower=Lock.IMAGE, unlocked_layers=1), BATCH)
    projection = 2 * CONFIG.vision.embed_dim * 16
    assert one == BATCH * (image + 2 * (block + projection) + 3 * text + logits)
    half = image_flops(CONFIG.vision, 16, patches=8)
    assert step_flops(stage(vision={"patch_dropout": 0.5}), BATCH) == BATCH * (3 * (half + text) + logits)
    assert half < 0.55 * image
