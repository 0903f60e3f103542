"""The codec's task: its objective, its metrics and alarms, and the pulse of the tiny preset."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.codec_dalle import get_config
from dalle_jax.codec import (
    Body,
    CodecConfig,
    CodecStage,
    CodecTask,
    ConvConfig,
    PatchConfig,
    Relaxation,
    VqConfig,
)
from dalle_jax.codec.losses import kl_to_uniform, reconstruction_loss
from dalle_jax.codec.metrics import image_errors, usage_collapsed, usage_metrics
from dalle_jax.codec.model import Codec
from dalle_jax.codec.pixels import map_pixels
from dalle_jax.codec.relaxation import gumbel_softmax
from dalle_jax.config import from_config_dict
from dalle_jax.data.config import Augment
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.loop import train

TRAIN = TrainConfig(batch_size=8, num_steps=2, optimizer=OptimizerConfig(learning_rate=1e-3))
GUMBEL = CodecConfig(
    codebook_size=16, conv=ConvConfig(hidden_dim=8, decoder_input_dim=8, num_groups=2, blocks_per_group=1)
)
VQ = CodecConfig(
    codebook_size=16,
    body=Body.PATCH,
    relaxation=Relaxation.VQ,
    patch=PatchConfig(
        fine_patch=2, merge=2, fine_dim=12, fine_blocks=0, token_dim=12, encoder_blocks=1, decoder_blocks=1
    ),
    vq=VqConfig(code_dim=4),
)


def pictures(count=8, size=16):
    """A dark square on a light ground."""
    images = np.full((count, size, size, 3), 220, np.uint8)
    images[:, 4:9, 4:9] = (200, 30, 30)
    return images


def task_of(config):
    task = CodecTask(CodecStage(config, TRAIN, Augment.NONE), 16)
    params, model_state = nn.unbox(jax.jit(task.init)(jax.random.key(0)))
    return task, params, model_state


class RepeatedBatch:
    """The same images at every step."""

    bad_counts: dict[str, int] = {}
    captions_cut = 0
    part_counts = {}

    def __init__(self, images):
        self.images = images

    def iterate(self, start, *, sharding):
        while True:
            yield {"image": jax.device_put(self.images, sharding)}

    def epoch(self, num_batches, *, sharding):
        yield {"image": jax.device_put(self.images, sharding)}


def test_the_objective_is_divided_once_by_the_number_of_values():
    task, params, _ = task_of(GUMBEL)
    images, key, step = jnp.asarray(pictures(4)), jax.random.key(1), 2_500
    loss, (_, metrics) = jax.jit(task.loss)(params, {}, {"image": images}, key=key, step=jnp.int32(step))

    @jax.jit
    def expected(params):
        model, variables = Codec(GUMBEL), {"params": params}
        logits = model.apply(variables, images, method="encode")
        maps = model.apply(variables, gumbel_softmax(logits, GUMBEL.gumbel.temperature(step), key), method="decode")
        nll = reconstruction_loss(GUMBEL.reconstruction, map_pixels(images), maps)
        return (nll + 3.3 * kl_to_uniform(logits)).mean() / (16 * 16 * 3)

    np.testing.assert_allclose(loss, expected(params), rtol=1e-5)
    assert metrics["kl_weight"] == pytest.approx(3.3)


@pytest.mark.parametrize("commitment", [0.0, 0.25])
def test_the_quantized_objective_and_its_gradient(commitment):
    """The decoder reads codes; the encoder is taught through them as if they were its vectors, and drawn to them."""
    config = dataclasses.replace(VQ, vq=dataclasses.replace(VQ.vq, commitment=commitment))
    task, params, state = task_of(config)
    images, codebook = jnp.asarray(pictures(4)), state["codebook"]
    options = {"key": jax.random.key(1), "step": jnp.int32(0)}
    loss = jax.jit(jax.value_and_grad(lambda params: task.loss(params, state, {"image": images}, **options)[0]))

    @jax.jit
    @jax.value_and_grad
    def expected(params):
        model, variables, stop = Codec(config), {"params": params}, jax.lax.stop_gradient
        vectors = model.apply(variables, images, method="encode")
        codes = codebook[jnp.square(vectors[..., None, :] - codebook).sum(-1).argmin(-1)]
        maps = model.apply(variables, codes + vectors - stop(vectors), method="decode")
        nll = reconstruction_loss(config.reconstruction, map_pixels(images), maps)
        distances = jnp.square(vectors - codes).sum(axis=(1, 2, 3))
        return (nll + commitment * distances).mean() / (16 * 16 * 3)

    (found, gradients), (wanted, wanted_gradients) = loss(params), expected(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), gradients, wanted_gradients)
    if not commitment:  # nothing but what passes through the codes teaches the encoder then
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradients["encoder"]))


def test_two_steps_of_the_tiny_preset(tmp_path):
    stage = from_config_dict(CodecStage, get_config("tiny")["codec"], "config.codec")
    assert (stage.model.body, stage.model.relaxation) == (Body.CONV, Relaxation.GUMBEL)
    config = dataclasses.replace(stage.train, batch_size=8, num_steps=2, log_every=1, eval_every=2, preview_every=2)
    task, rows = CodecTask(stage, 64), []
    train(
        task,
        config,
        mesh_config=MeshConfig(data=1),
        batches=RepeatedBatch(pictures(size=64)),
        eval_batches=RepeatedBatch(pictures(size=64)),
        workdir=tmp_path,
        seed=0,
        on_row=lambda step, row: rows.append(dict(row)),
        devices=jax.devices()[:1],
    )
    logged = {name for row in rows for name in row}
    assert {"loss", "reconstruction", "kl", "kl_weight", "temperature", "psnr", "codebook_usage"} <= logged
    assert list((tmp_path / "previews").glob("*.png"))
    assert task.step_flops(8) == 2 * task.step_flops(4) > 0


def test_a_codec_that_draws_only_backgrounds_is_seen():
    images = jnp.asarray(pictures(2))
    flat = jnp.full((2, 16, 16, 3), 220 / 255)
    errors = image_errors(flat, images)
    np.testing.assert_allclose(errors["foreground"], errors["flat"], rtol=1e-5)
    assert (errors["foreground_values"] == 5 * 5 * 3).all()
    np.testing.assert_allclose(errors["foreground"], errors["mse"] * 16 * 16 * 3, rtol=1e-5)  # all error is there
    assert image_errors(images / 255.0, images)["foreground"].max() < 1e-10


def test_evaluation_rings_both_alarms(caplog):
    task, params, _ = task_of(GUMBEL)
    # One code wins everywhere, and every mean is the light ground's.
    ground = map_pixels(jnp.full((1, 1, 3), 220, jnp.uint8)).reshape(3)
    params["encoder"]["blocks"]["output"]["conv"]["bias"] = 100.0 * jax.nn.one_hot(3, 16)
    output = params["decoder"]["blocks"]["output"]["conv"]
    output["kernel"] = jnp.zeros_like(output["kernel"])
    output["bias"] = jnp.zeros(6).at[:3].set(jnp.log(ground / (1 - ground)))
    task = CodecTask(CodecStage(dataclasses.replace(GUMBEL, usage_alarm=0.2), TRAIN), 16)
    metrics = task.evaluate(params, {}, [{"image": jnp.asarray(pictures())}] * 2)
    assert metrics["codebook_usage"] == pytest.approx(1 / 16) and metrics["perplexity"] == pytest.approx(1.0)
    assert metrics["usage_collapsed"] == 1.0
    assert metrics["psnr"] > metrics["foreground_psnr"] + 8
    assert metrics["foreground_explained"] == pytest.approx(0.0, abs=0.01)
    warnings = caplog.text
    assert "codebook usage has collapsed to 6.2% of 16 codes" in warnings and "little but backgrounds" in warnings


def test_usage():
    used = usage_metrics(jnp.array([4.0, 4.0, 0.0, 0.0]))
    assert used["codebook_usage"] == 0.5 and used["perplexity"] == pytest.approx(2.0)
    assert usage_collapsed(np.array([9, 0, 0, 0]), 0.5) and not usage_collapsed(np.array([9, 9, 0, 0]), 0.5)
    assert not usage_collapsed(np.eye(1000)[0], 0.05)  # one token cannot use more than one code


def test_the_preview_shows_originals_over_reconstructions():
    task, params, model_state = task_of(VQ)
    sheet = task.preview(params, model_state, {"image": jnp.asarray(pictures(8))})
    assert sheet.dtype == np.uint8 and sheet.shape == (4 * 18 + 2, 4 * 18 + 2, 3)
    np.testing.assert_array_equal(sheet[2:18, 2:18], pictures(1)[0])
    np.testing.assert_array_equal(sheet[38:54, 2:18], pictures(1)[0])


@pytest.mark.parametrize("config", [GUMBEL, VQ], ids=["gumbel", "vq"])
def test_evaluation_counts_every_picture_once(config):
    task, params, model_state = task_of(config)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)

    def batch(places, mask):
        return task.prepare({"image": jnp.asarray(images[places]), "mask": jnp.asarray(mask), "label": jnp.zeros(2)})

    yes, no = True, False
    cut = [batch([0, 1], [yes, yes]), batch([2, 3], [yes, yes]), batch([4, 0], [yes, no])]
    found = task.evaluate(params, model_state, cut)
    assert task._evaluate_batch._cache_size() == 1
    # What is explained is a difference from one: its rounding is that of the one.
    whole = task.evaluate(params, model_state, [{"image": jnp.asarray(images)}])
    assert found == pytest.approx(whole, rel=1e-5, abs=1e-5)
