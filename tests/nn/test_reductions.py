"""What sums many bfloat16 numbers sums them in float32: past a few hundred terms a sum in bfloat16 stands still."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import ClipConfig, ClipStage, TextConfig, VisionConfig, tower_config
from clip_jax.objectives import TASKS, Objective
from configs import clip, codec_dalle, decoder_1b
from dalle_jax.codec import Body, CodecConfig, CodecStage, CodecTask, Relaxation
from dalle_jax.config import from_config_dict
from dalle_jax.nn.attention import Pattern
from dalle_jax.nn.precision import add_bias
from dalle_jax.training.config import OptimizerConfig, TrainConfig
from launch.run.config import RunConfig
from tests.nn.traced import equations, traced_stage, traced_task

MOST = 256
"""Terms; the mantissa of bfloat16 has 8 bits, so that 256 + 1 is 256."""

SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "cumlogsumexp", "reduce_prod", "cumprod")
TRAIN = TrainConfig(batch_size=512, num_steps=1, optimizer=OptimizerConfig(1e-3))


def terms(equation):
    """How many numbers each result of a reduction sums."""
    shape, params = equation.invars[0].aval.shape, equation.params
    if "axes" in params:
        return math.prod(shape[axis] for axis in params["axes"])
    return math.prod(params["window_dimensions"]) if "window_dimensions" in params else shape[params["axis"]]


def long_sums(program):
    """Reductions of a program that sum more than `MOST` bfloat16 numbers; how many sums of float32 have as many."""
    found, exact = [], 0
    for equation in equations(program):
        if equation.primitive.name in SUMS and terms(equation) > MOST:
            coarse = equation.invars[0].aval.dtype == jnp.bfloat16
            exact += not coarse
            found += [(equation.primitive.name, equation.invars[0].aval.shape)] if coarse else []
    return found, exact


def published(module, arg, stage):
    return lambda: traced_stage(from_config_dict(RunConfig, module.get_config(arg)), stage)


def decoder_of_all_patterns():
    run = from_config_dict(RunConfig, decoder_1b.get_config(""))
    model = dataclasses.replace(run.decoder.model, num_layers=len(Pattern), patterns=tuple(Pattern))
    assert model.dtype == "bfloat16"
    return traced_stage(dataclasses.replace(run, decoder=dataclasses.replace(run.decoder, model=model)), "decoder")


def codec(body, relaxation):
    model = CodecConfig(codebook_size=512, body=body, relaxation=relaxation, dtype="bfloat16")
    task = CodecTask(CodecStage(model, TRAIN), 64)
    return lambda: traced_task(task, TRAIN, {"image": ((512, 64, 64, 3), np.uint8)})


def objective(kind):
    tower = tower_config(1, 32, head_dim=16, dtype="bfloat16")
    stage = ClipStage(ClipConfig(16, VisionConfig(16, 8, tower), TextConfig(9, 6, 3, tower)), TRAIN)
    task = TASKS[kind](stage, np.zeros((3, 1, 6), np.int32))
    return lambda: traced_task(task, TRAIN, {"image": ((512, 16, 16, 3), np.uint8), "text": ((512, 6), np.int32)})


STEPS = {
    "decoder": decoder_of_all_patterns,
    "codec, published": published(codec_dalle, "", "codec"),
    **{f"codec, {b.value}, {r.value}": codec(b, r) for b in Body for r in Relaxation},
    "CLIP, ViT": published(clip, "vit_b32", "clip"),
    "CLIP, ResNet": published(clip, "rn50", "clip"),
    "SigLIP": published(clip, "siglip_b16", "clip"),
    **{f"objective, {kind.value}": objective(kind) for kind in Objective},
}


@pytest.mark.parametrize("name", STEPS)
def test_no_step_sums_many_numbers_in_bfloat16(name):
    program = STEPS[name]()
    assert any(v.aval.dtype == jnp.bfloat16 for e in equations(program) for v in e.outvars if hasattr(v.aval, "dtype"))
    found, exact = long_sums(program)
    assert not found and exact


def test_the_gradient_of_a_bias_is_the_sum_of_all_cotangents():
    """Over so many positions a sum in bfloat16 gives half of it."""
    cotangents = np.random.default_rng(0).uniform(0.5, 1.5, (80, 1024, 2)).astype(np.float32)
    rounded = jnp.asarray(cotangents).astype(jnp.bfloat16)

    @jax.jit
    def pull_back(bias, cotangents):
        return jax.vjp(lambda bias: add_bias(jnp.zeros(cotangents.shape, jnp.bfloat16), bias), bias)[1](cotangents)[0]

    found = pull_back(jnp.zeros(2), rounded)
    np.testing.assert_allclose(found, np.asarray(rounded, np.float64).sum((0, 1)), rtol=1e-5)


def test_a_bias_is_added_as_it_is_where_all_is_float32():
    x, bias = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 4)), jnp.float32) for i in range(2))
    np.testing.assert_array_equal(add_bias(x, bias[0]), x + bias[0])
    assert add_bias(x.astype(jnp.bfloat16), bias[0]).dtype == jnp.bfloat16
