"""The optimizer against plain numpy, and schedules against their closed forms."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dalle_jax.errors import UserError
from dalle_jax.training.config import OptimizerConfig, Schedule
from dalle_jax.training.optimizer import decay_mask, learning_rate, make_optimizer, make_schedule, new_course


def numpy_adamw(params, grads, config, rate):
    """Float64 AdamW, as the papers write it, one parameter vector per name; clip by global norm first."""
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    for t, step_grads in enumerate(grads, 1):
        norm = np.sqrt(sum((g**2).sum() for g in step_grads.values()))
        scale = 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / norm)
        for name, p in params.items():
            g = step_grads[name] * scale
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            if config.second_moment_clip is not None:
                v[name] = np.minimum(v[name], config.second_moment_clip)
            direction = (m[name] / (1 - config.b1**t)) / (np.sqrt(v[name] / (1 - config.b2**t)) + config.epsilon)
            decay = 0.0 if name in ("bias", "scale") else config.weight_decay
            params[name] = p - rate * (direction + decay * p)
    return params


@pytest.mark.parametrize(
    "changes",
    [{}, {"clip_norm": 4.0}, {"clip_norm": 1e6, "second_moment_clip": 5.0, "b2": 0.96}],
    ids=["plain", "clip_norm", "second_moment_clip"],
)
def test_equals_numpy_adamw(changes):
    config = OptimizerConfig(learning_rate=0.01, schedule=Schedule.CONSTANT, weight_decay=0.045, **changes)
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(5) for name in ("kernel", "bias", "scale")}
    # Gradients of 40: their running variance passes 5 at the first step with b2 of 0.96.
    grads = [{name: 40 * rng.standard_normal(5) for name in params} for _ in range(6)]
    optimizer = make_optimizer(config, num_steps=6)
    ours = jax.tree.map(jnp.float32, params)
    state = optimizer.init(ours)
    for step_grads in grads:
        updates, state = optimizer.update(jax.tree.map(jnp.float32, step_grads), state, ours, value=jnp.float32(0))
        ours = optax.apply_updates(ours, updates)
    expected = numpy_adamw(dict(params), grads, config, 0.01)
    for name in params:
        np.testing.assert_allclose(ours[name], expected[name], rtol=2e-5)
    if "second_moment_clip" in changes:
        nu = optax.tree.get(state, "nu")
        assert max(float(v.max()) for v in jax.tree.leaves(nu)) == 5.0  # The stored estimate is the bounded one.


def test_first_moment_in_bfloat16():
    for bound in (None, 5.0):
        config = OptimizerConfig(learning_rate=0.1, first_moment_dtype="bfloat16", second_moment_clip=bound)
        optimizer, params = make_optimizer(config, 10), {"kernel": jnp.ones(3)}
        state = optimizer.init(params)
        updates, state = optimizer.update({"kernel": jnp.ones(3)}, state, params, value=jnp.float32(0))
        assert optax.tree.get(state, "mu")["kernel"].dtype == jnp.bfloat16
        assert optax.tree.get(state, "nu")["kernel"].dtype == jnp.float32
        assert updates["kernel"].dtype == jnp.float32


def test_decay_mask_reads_paths():
    params = {
        "layer_0": {"attention": {"qkv_kernel": 0, "qkv_bias": 0}, "norm_1": {"scale": 0, "bias": 0}},
        "rescale_in": 0,
    }
    mask = decay_mask(params, (r"bias$", r"/scale$"))
    assert mask == {
        "layer_0": {"attention": {"qkv_kernel": True, "qkv_bias": False}, "norm_1": {"scale": False, "bias": False}},
        "rescale_in": True,
    }


def test_warm_up_then_cosine():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay_steps=12, final_learning_rate=0.2)
    rates = np.array([make_schedule(config, 100)(n) for n in range(20)])
    k = np.arange(1, 21)  # The update that brings the count to k.
    cosine = 0.2 + 1.8 * 0.5 * (1 + np.cos(np.pi * np.clip((k - 4) / 8, 0, 1)))
    np.testing.assert_allclose(rates, np.where(k <= 4, 2.0 * k / 4, cosine), rtol=1e-6)
    whole_run = OptimizerConfig(learning_rate=1.0)
    np.testing.assert_allclose(make_schedule(whole_run, 10)(9), 0.0, atol=1e-7)


def plateau_rates(losses, **changes):
    config = OptimizerConfig(
        learning_rate=1.0,
        schedule=Schedule.PLATEAU,
        plateau_window=2,
        plateau_patience=2,
        plateau_threshold=0.01,
        **changes,
    )
    optimizer, params = make_optimizer(config, 1000), {"kernel": jnp.ones(1)}

    def step(state, loss):
        _, new = optimizer.update({"kernel": jnp.ones(1)}, state, params, value=loss)
        return new, learning_rate(config, 1000, jnp.int32(0), new)

    _, rates = jax.lax.scan(step, optimizer.init(params), jnp.float32(losses))
    return np.array(rates)


def test_plateau_halves_where_the_loss_stops_falling():
    falling = np.repeat(np.linspace(2, 1, 10), 2)
    assert (plateau_rates(falling) == 1).all()
    # The first window of a flat loss is a gain over nothing; the next two are without one, every two halve again.
    flat = plateau_rates(np.ones(16))
    np.testing.assert_array_equal(flat, [1] * 5 + [0.5] * 4 + [0.25] * 4 + [0.125] * 3)
    assert (plateau_rates(np.tile([0.5, 1.5], 4)) == plateau_rates(np.ones(8))).all()  # Windows are means.


def test_plateau_halves_at_most_so_often():
    rates = plateau_rates(np.ones(100), halvings=5)
    assert rates[-1] == 1 / 32
    assert sorted(set(rates), reverse=True) == [0.5**k for k in range(6)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"no_decay": ("(",)}, "not a regular expression"),
        ({"first_moment_dtype": "float16"}, "first_moment_dtype"),
        ({"warmup_steps": 10, "decay_steps": 10}, "must exceed warmup_steps"),
        ({"schedule": Schedule.PLATEAU, "plateau_patience": 0}, "plateau_patience"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(OptimizerConfig(learning_rate=1.0, **changes), 100)


COSINE = OptimizerConfig(1e-3, final_learning_rate=1e-5)
WARMING = dataclasses.replace(COSINE, warmup_steps=100)
OF_400, OF_1000, OF_2000 = (dataclasses.replace(COSINE, decay_steps=steps) for steps in (400, 1000, 2000))


@pytest.mark.parametrize(
    ("before", "now", "done", "course"),
    [
        ((COSINE, 1000), (COSINE, 2000), 1000, "goes from 1e-05 to 0.0005 with the next update, and falls .* to 1e-05"),
        ((COSINE, 1000), (COSINE, 2000), 500, "goes from 0.00051 to 0.00085"),
        ((COSINE, 1000), (OF_1000, 2000), 1000, "stays at 1e-05"),
        ((OF_400, 1000), (OF_400, 2000), 700, "stays at 1e-05"),
        ((COSINE, 1000), (COSINE, 1000), 1000, None),
        ((COSINE, 1000), (COSINE, 2000), 0, None),
        ((COSINE, 1000), (COSINE, 900), 1000, None),
        ((WARMING, 1000), (WARMING, 2000), 99, None),
        ((WARMING, 1000), (WARMING, 2000), 1000, "goes from 1e-05"),
        ((OF_2000, 1000), (OF_2000, 2000), 900, None),
        ((OptimizerConfig(1e-3, Schedule.CONSTANT), 10), (OptimizerConfig(1e-3, Schedule.CONSTANT), 20), 10, None),
    ],
)  # fmt: skip
def test_what_the_rate_of_a_lengthened_run_will_do(before, now, done, course):
    said = new_course(*before, *now, done)
    assert (said is None) is (course is None)
    if said is not None:
        assert re.search(course, said) and "docs/configs.md" in said


def test_a_cosine_of_the_length_it_had_is_the_same_one():
    """So a lengthened run may keep its own: `decay_steps` is then what `num_steps` was."""
    old, new = make_schedule(COSINE, 100), make_schedule(dataclasses.replace(COSINE, decay_steps=100), 300)
    assert [float(old(i)) for i in range(100)] == [float(new(i)) for i in range(100)]
    assert float(new(200)) == pytest.approx(1e-5)
