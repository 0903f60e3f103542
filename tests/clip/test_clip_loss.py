"""The contrastive losses: their values, their shards, their chunks, and their accumulation over micro-batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses.accumulation import accumulated_gradients
from clip_jax.losses.base import Best
from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.losses.softmax import contrastive_loss
from dalle_jax.errors import UserError
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, replicated
from launch.benchmarks.contrastive import largest_array

BATCH, EMBED, SCALE, BIAS, CHUNK = 64, 8, 14.0, -3.0, 4


def softmax(image, text, scale, bias, **options):
    del bias
    return contrastive_loss(image, text, scale, **options)


def sigmoid(image, text, scale, bias, **options):
    return sigmoid_loss(image, text, scale, bias, **options)


LOSSES = {
    "softmax": softmax,
    "softmax, chunked": partial(softmax, chunk=CHUNK),
    "sigmoid": sigmoid,
    "sigmoid, chunked": partial(sigmoid, chunk=CHUNK),
}


def features(batch=BATCH):
    keys = jax.random.split(jax.random.key(0))
    return [jax.random.normal(key, (batch, EMBED)) for key in keys]


def arguments():
    return (*features(), jnp.float32(SCALE), jnp.float32(BIAS))


def logits(image, text, scale, bias):
    """As a user would write them."""
    unit_image, unit_text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    return scale * unit_image @ unit_text.T + bias


def definition(name, image, text, scale, bias):
    """All pairs at once."""
    x = logits(image, text, scale, bias)
    if name.startswith("sigmoid"):
        return -jnp.sum(jax.nn.log_sigmoid((2 * jnp.eye(len(x)) - 1) * x)) / len(x)
    return -jnp.mean(jnp.stack([jnp.diag(jax.nn.log_softmax(x, axis=axis)) for axis in (0, 1)]))


def value_and_gradients(loss):
    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))


def close(actual, expected):
    # Of the bias a softmax has no gradient but rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-7), actual, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_value_gradient_and_winners_are_those_of_the_definition(name):
    actual = jax.jit(value_and_gradients(lambda *args: LOSSES[name](*args).loss))(*arguments())
    close(actual, value_and_gradients(partial(definition, name))(*arguments()))
    result, x = jax.jit(LOSSES[name])(*arguments()), logits(*arguments())
    np.testing.assert_allclose(result.loss, actual[0], rtol=1e-6)
    np.testing.assert_array_equal(result.best_text, x.argmax(axis=1))
    np.testing.assert_array_equal(result.best_image, x.argmax(axis=0))


@pytest.mark.parametrize(
    "name, axes",
    [
        *((name, axes) for name in ("softmax", "sigmoid") for axes in ((8, 1, 1), (2, 4, 1), (4, 1, 2))),
        ("softmax, chunked", (2, 4, 1)),
        ("sigmoid, chunked", (4, 1, 2)),
    ],
    ids=str,
)
def test_on_a_mesh_it_is_the_same_and_no_device_holds_all_pairs(name, axes):
    mesh, rules = make_mesh(MeshConfig(*axes)), ShardingRules()
    rows, copies = batch_sharding(mesh, rules), replicated(mesh)

    def everything(*args):
        def loss(*args):
            result = LOSSES[name](*args)
            return result.loss, (result.best_text, result.best_image)

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*args)

    with jax.set_mesh(mesh), rules.context():
        placed = jax.device_put(arguments(), (rows, rows, copies, copies))
        compiled = jax.jit(everything).lower(*placed).compile()
    (loss, winners), gradients = compiled(*placed)
    close((loss, gradients), value_and_gradients(partial(definition, name))(*arguments()))
    x = logits(*arguments())
    np.testing.assert_array_equal(winners[0], x.argmax(axis=1))
    np.testing.assert_array_equal(winners[1], x.argmax(axis=0))
    local = BATCH // (axes[0] * axes[1])
    most = {
        "softmax": local * BATCH,
        "softmax, chunked": BATCH * EMBED,  # all features of one side
        "sigmoid": local * local,
        "sigmoid, chunked": local * max(CHUNK, EMBED),
    }
    assert largest_array(compiled.as_text()) == 4 * most[name]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_pairs_that_do_not_count_are_as_good_as_absent(name, devices):
    """As queries, as what others are told from, and as winners; a chunk and a device may have none that counts."""
    counted = np.setdiff1d(np.arange(BATCH), [*range(8), 30, *range(60, BATCH)])
    mask = jnp.zeros(BATCH, bool).at[counted].set(True)
    image, text, scale, bias = arguments()
    present = image[counted], text[counted], scale, bias
    mesh, rules = make_mesh(MeshConfig(data=devices), jax.devices()[:devices]), ShardingRules()

    def everything(mask, *args):
        def loss(*args):
            result = LOSSES[name](*args, mask=mask)
            return result.loss, (result.best_text, result.best_image)

        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*args)

    with jax.set_mesh(mesh), rules.context():
        rows, copies = batch_sharding(mesh, rules), replicated(mesh)
        placed = jax.device_put((mask, *arguments()), (rows, rows, rows, copies, copies))
        (loss, winners), (of_image, of_text, *others) = jax.jit(everything)(*placed)
    found = loss, (of_image[counted], of_text[counted], *others)
    close(found, value_and_gradients(partial(definition, name))(*present))
    assert not of_image[~mask].any() and not of_text[~mask].any()
    x = logits(*present)
    np.testing.assert_array_equal(winners[0][counted], counted[x.argmax(axis=1)])
    np.testing.assert_array_equal(winners[1][counted], counted[x.argmax(axis=0)])


@pytest.mark.parametrize("name", ["softmax, chunked", "sigmoid, chunked"])
def test_in_chunks_the_largest_array_grows_with_the_batch_alone(name):
    """On one device, where nothing else splits the pairs."""
    sizes = []
    for batch in (128, 256):
        args = (*features(batch), jnp.float32(SCALE), jnp.float32(BIAS))
        program = jax.jit(value_and_gradients(lambda *args: LOSSES[name](*args).loss)).lower(*args).compile()
        sizes.append(largest_array(program.as_text()))
    assert sizes[1] == 2 * sizes[0]


@pytest.mark.parametrize("loss", [softmax, sigmoid])
def test_a_chunk_divides_the_batch_or_is_all_of_it(loss):
    with pytest.raises(UserError, match="loss_chunk=5 does not divide the 64 captions"):
        loss(*arguments(), chunk=5)
    np.testing.assert_allclose(loss(*arguments(), chunk=1000).loss, loss(*arguments()).loss)


def test_the_first_of_equal_columns_wins_in_any_order_of_chunks():
    scores = jnp.float32([[1, 3, 3, 0], [2, 2, 2, 2], [0, 1, 0, 5]])
    for order in ((0, 2), (2, 0)):
        best = Best.none_yet(3)
        for first in order:
            best = best.update(scores[:, first : first + 2], first)
        np.testing.assert_array_equal(best.index, scores.argmax(axis=1))


def test_pairs_of_a_trained_model_cost_little_and_the_rest_by_their_number():
    """The sigmoid loss by hand: right pairs at cosine 1, all others at 0."""
    units = jnp.eye(4)
    found = sigmoid_loss(units, units, jnp.float32(20.0), jnp.float32(-10.0)).loss
    assert float(found) == pytest.approx(4 * np.log1p(np.exp(-10)), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_is_one_batch(parts, loss):
    weights = jax.random.normal(jax.random.key(1), (2, 5, EMBED))
    inputs = dict(zip(("image", "text"), jax.random.normal(jax.random.key(2), (2, 16, 5)), strict=True))
    params = {"towers": weights, "scale": jnp.float32(1.0), "bias": jnp.float32(-1.0)}

    def encode(params, batch, key):
        return batch["image"] @ params["towers"][0], batch["text"] @ params["towers"][1]

    def objective(params, pair):
        return loss(*pair, jnp.exp(params["scale"]), params["bias"]).loss, None

    expected = jax.value_and_grad(lambda p: objective(p, encode(p, inputs, None))[0])(params)
    gradients, (value, _) = accumulated_gradients(encode, objective, params, inputs, jax.random.key(0), parts)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, expected[1])
    # And no mean over the parts, whose images are told from fewer captions.
    cut = [jax.tree.map(lambda x, i=i: x[i::2], inputs) for i in range(2)]
    means = np.mean([float(objective(params, encode(params, part, None))[0]) for part in cut])
    assert abs(means - value) > 0.1
