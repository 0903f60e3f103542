"""One step: the same on every mesh, in one batch or several, with its average and its metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.training import step as step_module
from dalle_jax.training.config import MeshConfig, OptimizerConfig, Schedule
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding
from dalle_jax.training.state import abstract_state, init_state, state_shardings
from dalle_jax.training.step import compile_step, make_train_step
from dalle_jax.training.trees import named_leaves
from tests.training.tiny_run import TinyBatches, TinyTask, tiny_config

SGD_LIKE = OptimizerConfig(learning_rate=0.1, schedule=Schedule.CONSTANT, weight_decay=0.1, epsilon=1.0)
"""Adam with a large epsilon is close to linear in the gradient, so that an order of sums cannot flip an update."""


def run(task, config, mesh_config=None, steps=3, devices=None):
    """State and metrics after some steps on a mesh; on one device where none is named."""
    mesh = make_mesh(mesh_config or MeshConfig(), devices if mesh_config is None else None)
    rules = ShardingRules()
    with jax.set_mesh(mesh), rules.context():
        optimizer = make_optimizer(config.optimizer, config.num_steps)
        boxed = abstract_state(task, optimizer, config.ema_decay is not None)
        shardings, sharding = state_shardings(boxed, mesh, rules), batch_sharding(mesh, rules)
        state = init_state(task, optimizer, config.ema_decay is not None, 3, shardings)
        program = compile_step(make_train_step(task, config, optimizer, sharding), shardings)
        stream, history = TinyBatches().iterate(0, sharding=sharding), []
        for _ in range(steps):
            state, metrics = program(state, next(stream))
            history.append(jax.device_get(metrics))
    return state, history


def assert_close(a, b, rtol, atol=1e-6):
    a, b = named_leaves(a), named_leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(np.asarray(a[name]), np.asarray(b[name]), rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def on_one_device():
    return run(TinyTask(), tiny_config(optimizer=SGD_LIKE), devices=jax.devices()[:1])


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_equals_one_device(sizes, on_one_device):
    state, history = run(TinyTask(), tiny_config(optimizer=SGD_LIKE), MeshConfig(*sizes))
    # A mesh changes the order of float32 sums and nothing else: some units in the last place, over three steps.
    assert_close(state.params, on_one_device[0].params, rtol=1e-5)
    assert_close(state.opt_state, on_one_device[0].opt_state, rtol=1e-5)
    assert_close(state.ema, on_one_device[0].ema, rtol=1e-5)
    assert_close(history, on_one_device[1], rtol=1e-5)


def test_state_is_split_over_the_mesh():
    state, _ = run(TinyTask(), tiny_config(), MeshConfig(2, 2, 2), steps=1)
    for tree in (state.params, state.ema, state.opt_state[1].mu, state.opt_state[1].nu):
        kernel = tree["in"]["kernel"]
        assert kernel.addressable_shards[0].data.size * 4 == kernel.size  # fsdp x tensor
    assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "scan"])
def test_accumulation_equals_one_batch(unroll, monkeypatch):
    if not unroll:
        mean_gradients = step_module._mean_gradients
        monkeypatch.setattr(
            step_module,
            "_mean_gradients",
            lambda *args, **options: mean_gradients(*args, **options | {"unroll": False}),
        )
    quiet = TinyTask(noise=0.0)  # Each micro-batch has noise of its own.
    device = jax.devices()[:1]
    one = run(quiet, tiny_config(optimizer=SGD_LIKE, micro_batches=1), devices=device)
    four = run(quiet, tiny_config(optimizer=SGD_LIKE, micro_batches=4), devices=device)
    # The mean of four means is the mean, up to the order of float32 sums.
    assert_close(one[0].params, four[0].params, rtol=1e-5)
    for name in ("loss", "inputs", "grad_norm"):
        np.testing.assert_allclose([m[name] for m in one[1]], [m[name] for m in four[1]], rtol=1e-4, atol=1e-6)


def test_randomness_is_of_the_step_and_the_micro_batch():
    keys = []

    class Spy(TinyTask):
        def loss(self, params, model_state, batch, *, key, step):
            jax.debug.callback(lambda *values: keys.append(tuple(map(int, values))), step, *jax.random.key_data(key))
            return super().loss(params, model_state, batch, key=key, step=step)

    state, _ = run(Spy(), tiny_config(micro_batches=2), steps=2, devices=jax.devices()[:1])
    jax.effects_barrier()
    expected = set()
    for n in range(2):
        for i in range(2):
            key = jax.random.fold_in(jax.random.fold_in(state.key, n), i)
            expected.add((n, *map(int, jax.random.key_data(key))))
    assert set(keys) == expected


def test_average_moves_every_so_often():
    config = tiny_config(ema_decay=0.75, ema_every=2, optimizer=SGD_LIKE)
    device = jax.devices()[:1]
    states = [run(TinyTask(), config, steps=n, devices=device)[0] for n in range(4)]
    initial, first, second, third = (state.ema["in"]["kernel"] for state in states)
    np.testing.assert_array_equal(initial, states[0].params["in"]["kernel"])
    np.testing.assert_array_equal(first, initial)
    np.testing.assert_allclose(second, 0.75 * initial + 0.25 * states[2].params["in"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(third, second)


def test_constrain_and_own_gradients():
    class Odd(TinyTask):
        def constrain(self, params):
            return jax.tree.map(lambda x: jnp.minimum(x, 0.5), params)

        def gradients(self, params, model_state, batch, *, key, step, micro_batches, whole):
            assert micro_batches == 2
            return jax.tree.map(jnp.ones_like, params), (model_state, {"loss": jnp.float32(3.0)})

    state, history = run(Odd(), tiny_config(optimizer=SGD_LIKE), steps=1, devices=jax.devices()[:1])
    assert max(float(leaf.max()) for leaf in jax.tree.leaves(state.params)) == 0.5
    assert history[0]["loss"] == 3.0
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    np.testing.assert_allclose(history[0]["grad_norm"], count**0.5, rtol=1e-6)
