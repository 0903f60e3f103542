"""The parts of the codec's objective against their closed forms, and its schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.codec import CosineRamp, GumbelConfig, Reconstruction
from dalle_jax.codec.losses import kl_to_uniform, logit_laplace_log_prob, reconstruction_loss
from dalle_jax.codec.pixels import map_pixels, to_uint8, unmap_pixels


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1.3, 0.4), (-0.7, 0.1)])
def test_the_likelihood_is_a_density(mean, scale):
    logits = np.linspace(mean - 30 * scale, mean + 30 * scale, 20_001)
    x = jnp.float32(1 / (1 + np.exp(-logits)))
    density = np.exp(logit_laplace_log_prob(x, jnp.full_like(x, mean), jnp.full_like(x, math.log(scale))))
    inside = (x > 1e-6) & (x < 1 - 1e-6)  # float32 cannot tell the rest from the ends
    assert np.trapezoid(density[inside], x[inside]) == pytest.approx(1.0, abs=2e-3)


def test_the_likelihood_against_its_formula():
    rng = np.random.default_rng(0)
    x, mean, log_scale = rng.uniform(0.1, 0.9, 50), rng.normal(size=50), rng.normal(size=50)
    scale = np.exp(log_scale)
    expected = np.log(np.exp(-np.abs(np.log(x / (1 - x)) - mean) / scale) / (2 * scale * x * (1 - x)))
    actual = logit_laplace_log_prob(jnp.float32(x), jnp.float32(mean), jnp.float32(log_scale))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_likelihood():
    x, mean, log_scale = 0.3, 0.2, -0.5
    d_mean, d_scale = jax.grad(lambda *a: logit_laplace_log_prob(jnp.float32(x), *a), (0, 1))(mean, log_scale)
    distance = math.log(x / (1 - x)) - mean
    assert d_mean == pytest.approx(math.copysign(math.exp(-log_scale), distance), rel=1e-5)
    assert d_scale == pytest.approx(-1 + abs(distance) * math.exp(-log_scale), rel=1e-5)


@pytest.mark.parametrize("kind", Reconstruction)
def test_reconstruction_is_summed_over_a_picture_and_best_where_it_is_right(kind):
    images = jax.random.randint(jax.random.key(0), (2, 4, 4, 3), 0, 256).astype(jnp.uint8)
    x = map_pixels(images)
    right = jnp.concatenate([jnp.log(x / (1 - x)), jnp.zeros_like(x)], axis=-1)
    loss = reconstruction_loss(kind, x, right)
    assert loss.shape == (2,)
    assert (loss < reconstruction_loss(kind, x, right.at[..., :3].add(0.1))).all()
    twice = reconstruction_loss(kind, jnp.tile(x, (1, 2, 1, 1)), jnp.tile(right, (1, 2, 1, 1)))
    np.testing.assert_allclose(twice, 2 * loss, rtol=1e-4, atol=1e-4)


def test_a_floor_under_the_scales():
    """Beneath it the scale is the floor, and nothing is gained by shrinking it; above it nothing changes."""
    x = map_pixels(jnp.full((1, 2, 2, 3), 200, jnp.uint8))
    at = lambda log_scale, floor=None: reconstruction_loss(  # noqa: E731
        Reconstruction.LOGIT_LAPLACE,
        x,
        jnp.concatenate([jnp.zeros_like(x), jnp.full_like(x, log_scale)], axis=-1),
        floor,
    )[0]
    assert at(-3.0, -1.0) == at(-1.0) != at(-3.0)
    assert jax.grad(at)(-3.0, -1.0) == 0.0 != jax.grad(at)(-3.0)
    assert at(-0.5, -1.0) == at(-0.5)


def test_kl_to_the_uniform_prior():
    codes, cells = 8, 6
    certain = 1000.0 * jax.nn.one_hot(jnp.zeros((1, 2, 3), jnp.int32), codes)
    np.testing.assert_allclose(kl_to_uniform(certain), cells * math.log(codes), rtol=1e-6)
    np.testing.assert_allclose(kl_to_uniform(jnp.ones((1, 2, 3, codes))), 0.0, atol=1e-5)
    logits = jax.random.normal(jax.random.key(0), (4, 2, 3, codes))
    q = np.asarray(jax.nn.softmax(logits), np.float64)
    np.testing.assert_allclose(kl_to_uniform(logits), (q * np.log(q * codes)).sum((1, 2, 3)), rtol=1e-4)


def test_the_published_schedules():
    schedules = GumbelConfig()
    weight, temperature = schedules.kl_weight, schedules.temperature
    assert [float(weight(n)) for n in (0, 2_500, 5_000, 10**6)] == pytest.approx([0.0, 3.3, 6.6, 6.6])
    assert [float(temperature(n)) for n in (0, 75_000, 150_000, 10**6)] == pytest.approx([1.0, 17 / 32, 1 / 16, 1 / 16])
    quarter = 0.5 + 0.5 * math.cos(math.pi / 4)
    assert float(CosineRamp(1.0, 0.0, 100)(25)) == pytest.approx(quarter)
    assert float(CosineRamp(1.0, 0.25, 0)(0)) == 0.25


def test_the_pixel_map_and_its_inverse():
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 256, 1, 1).repeat(3, axis=-1)
    mapped = map_pixels(images)
    assert float(mapped.min()) == pytest.approx(0.1) and float(mapped.max()) == pytest.approx(0.9)
    assert (to_uint8(unmap_pixels(mapped)) == images).all()
    assert unmap_pixels(jnp.full((1, 1, 3), 0.95)).max() == 1.0 and unmap_pixels(jnp.full((1, 1, 3), 0.0)).min() == 0.0
