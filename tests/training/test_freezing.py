"""Frozen parameters: what is trained is a tree of its own, and the rest are constants of the step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.errors import UserError
from dalle_jax.training.config import MeshConfig, OptimizerConfig, Schedule
from dalle_jax.training.freezing import Freezing
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.trees import named_leaves, unbox
from tests.training.test_step import run
from tests.training.tiny_run import HIDDEN, WIDTH, TinyTask, tiny_config

FROZEN = {"freeze": ("^norm/", "bias$"), "freeze_first": (("^out/", 6),)}


def config(**changes):
    optimizer = OptimizerConfig(
        learning_rate=0.1, schedule=Schedule.CONSTANT, weight_decay=0.1, clip_norm=0.01, epsilon=1.0, **changes
    )
    return tiny_config(optimizer=optimizer, ema_every=1)


def stack():
    """Three blocks over the first axis, one parameter in a box."""
    return {
        "blocks": {"kernel": nn.LogicallyPartitioned(jnp.arange(6.0).reshape(3, 2), ("layers", "embed"))},
        "head": {"kernel": jnp.ones(2)},
        "scale": jnp.float32(1.0),
    }


def test_the_trained_part_and_back():
    freezing, params = Freezing(("^head/",), (("^blocks/", 2),)), stack()
    trained = freezing.trained(params)
    assert named_leaves(unbox(trained)).keys() == {"blocks/kernel", "scale"}
    assert trained["blocks"]["kernel"].names == ("layers", "embed")
    np.testing.assert_array_equal(trained["blocks"]["kernel"].value, [[4, 5]])
    params, trained = unbox(params), unbox(trained)
    moved = jax.tree.map(lambda x: x + 10, trained)
    whole = freezing.whole(params, moved)
    np.testing.assert_array_equal(whole["blocks"]["kernel"], [[0, 1], [2, 3], [14, 15]])
    np.testing.assert_array_equal(whole["head"]["kernel"], params["head"]["kernel"])
    assert float(whole["scale"]) == 11
    gradients = jax.grad(lambda t: jnp.sum(freezing.whole(params, t)["blocks"]["kernel"] ** 2))(trained)
    np.testing.assert_array_equal(gradients["blocks"]["kernel"], [[8, 10]])


def test_nothing_frozen_is_the_same_tree_and_all_entries_are_the_whole_parameter():
    params = stack()
    assert Freezing().trained(params) is params and Freezing().whole(params, params) is params
    assert Freezing(first=(("^blocks/", 3),)).trained(params).keys() == {"head", "scale"}


@pytest.fixture(scope="module")
def frozen_run():
    return run(TinyTask(), config(**FROZEN), MeshConfig(2, 2, 2))


def test_frozen_parameters_keep_their_values(frozen_run):
    before, _ = run(TinyTask(), config(**FROZEN), MeshConfig(2, 2, 2), steps=0)
    after = frozen_run[0]
    for was, now in ((before.params, after.params), (before.ema, after.ema)):
        for name in ("norm/scale", "in/bias"):
            np.testing.assert_array_equal(named_leaves(now)[name], named_leaves(was)[name])
        np.testing.assert_array_equal(now["out"]["kernel"][:6], was["out"]["kernel"][:6])
        assert bool(jnp.all(now["out"]["kernel"][6:] != was["out"]["kernel"][6:]))
        assert bool(jnp.all(now["in"]["kernel"] != was["in"]["kernel"]))


def test_the_optimizer_holds_nothing_of_them_and_what_it_holds_is_split(frozen_run):
    moments = frozen_run[0].opt_state[1].mu
    assert {name: x.shape for name, x in named_leaves(moments).items()} == {
        "in/kernel": (WIDTH, HIDDEN),
        "out/kernel": (HIDDEN - 6, WIDTH),
    }
    kernel = moments["in"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size  # fsdp x tensor


def test_norm_and_clip_are_of_what_is_trained():
    """As if the frozen parameters were constants of the model."""

    class Constants(TinyTask):
        def init(self, key):
            params, model_state = super().init(key)
            self.out, self.scale = params["out"]["kernel"].value, params.pop("norm")["scale"]
            params["out"]["kernel"] = params["out"]["kernel"].replace_boxed(self.out[6:])
            self.bias = params["in"].pop("bias").value
            return params, model_state

        def apply(self, params, x):
            whole = {"kernel": params["in"]["kernel"], "bias": jnp.zeros(HIDDEN)}
            out = {"kernel": jnp.concatenate([jax.lax.stop_gradient(self.frozen), params["out"]["kernel"]])}
            return super().apply({"in": whole, "out": out, "norm": {"scale": jnp.ones(WIDTH)}}, x)

    device = jax.devices()[:1]
    _, history = run(TinyTask(), config(**FROZEN), devices=device)
    initial, _ = run(TinyTask(), config(), steps=0, devices=device)
    Constants.frozen = np.asarray(initial.params["out"]["kernel"][:6])
    _, expected = run(Constants(), config(), devices=device)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([row[name] for row in history], [row[name] for row in expected], rtol=1e-5)


def test_learning_rates_by_pattern():
    """The first pattern counts, for the decay too; the report has the rate of the rest."""
    device = jax.devices()[:1]
    scaled = config(lr_scale=(("^out/", 0.5), ("kernel$", 0.0)))
    begin, _ = run(TinyTask(), config(), steps=0, devices=device)
    plain, _ = run(TinyTask(), config(), steps=1, devices=device)
    state, history = run(TinyTask(), scaled, steps=1, devices=device)
    moved, wanted = (
        {name: x - named_leaves(begin.params)[name] for name, x in named_leaves(s.params).items()}
        for s in (state, plain)
    )
    np.testing.assert_allclose(moved["out/kernel"], 0.5 * wanted["out/kernel"], atol=1e-7)
    np.testing.assert_array_equal(moved["in/kernel"], 0)
    np.testing.assert_allclose(moved["in/bias"], wanted["in/bias"], atol=1e-7)
    assert history[0]["learning_rate"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("^heads/",)}, r"'\^heads/' finds no parameter .*blocks, head, scale"),
        ({"freeze": ("(",)}, "freeze: .*not a regular expression"),
        ({"freeze_first": (("^blocks/", 4),)}, r"first 4 entries of blocks/kernel, and its shape is \(3, 2\)"),
        ({"freeze_first": (("scale", 1),)}, r"entries of scale, and its shape is \(\)"),
        ({"freeze_first": (("^blocks/", 0),)}, "freeze 1 or more"),
        ({"freeze_first": (("^block/", 1),)}, "freeze_first: .*finds no parameter"),
        ({"freeze": ("",)}, "nothing to train"),
        ({"lr_scale": (("^trunk/", 0.1),)}, "lr_scale: .*finds no parameter"),
        ({"lr_scale": (("^head/", 0.1),), "freeze": ("^head/",)}, "lr_scale: .*finds no parameter"),
        ({"lr_scale": (("(", 0.1),)}, "lr_scale: .*not a regular expression"),
    ],
)
def test_patterns_that_cannot_be_meant(changes, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(OptimizerConfig(learning_rate=1.0, **changes), 10).init(stack())
