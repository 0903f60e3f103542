"""The modified ResNet: its parts against NumPy, statistics of the whole batch on any mesh, and where they are read."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import Clip, ClipConfig, ClipModel, ClipStage, ClipTask, Lock, TextConfig, resnet_config, tower_config
from clip_jax.model import abstract_variables, init_variables
from clip_jax.towers.resnet import AttentionPool, BatchNorm, Bottleneck, Conv, ModifiedResNet
from clip_jax.towers.vit import normalize_pixels
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.nn.remat import Remat
from dalle_jax.training.checkpoints.reader import load_params
from dalle_jax.training.checkpoints.workdir import open_workdir
from dalle_jax.training.config import MeshConfig, OptimizerConfig, Schedule, TrainConfig
from dalle_jax.training.loop import train
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, param_shardings, replicated
from dalle_jax.training.trees import named_leaves, unbox

END = 3
TINY = ClipConfig(8, resnet_config(64, (1, 3, 1, 1), 4), TextConfig(40, 8, END, tower_config(1, 32, head_dim=16)))
RESNET = TINY.vision.resnet


def stage(**changes):
    return ClipStage(TINY, TrainConfig(16, 1, OptimizerConfig(1e-3, Schedule.CONSTANT), eval_batches=1, **changes))


@pytest.fixture(scope="module")
def variables():
    """Random everywhere: gains of zero and statistics of a fresh model would hide what they stand beside."""
    rng = np.random.default_rng(0)
    fresh = unbox(jax.jit(partial(init_variables, TINY))(jax.random.key(0)))
    stats = jax.tree.map(lambda x: rng.uniform(0.2, 0.8, x.shape).astype(np.float32), fresh["batch_stats"])
    params = jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(np.float32), fresh["params"])
    return {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def batch():
    """Every image brighter than the one before it: shares of the batch have other statistics than the whole."""
    rng = np.random.default_rng(1)
    images = (rng.integers(0, 256, (16, 64, 64, 3)) * np.linspace(0.05, 1, 16)[:, None, None, None]).astype(np.uint8)
    ids = rng.integers(4, 40, (16, 8)).astype(np.int32)
    ids[:, 0], ids[:, 6:] = 2, END
    return {"image": images, "text": ids}


def random_like(module, x, seed=0):
    """Variables of a module of its own, all random, variances positive."""
    rng = np.random.default_rng(seed)
    shapes = unbox(jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x)))
    return jax.tree.map(lambda leaf: rng.uniform(0.3, 1.0, leaf.shape).astype(np.float32), shapes)


def numpy_conv(x, kernel, stride=1):
    """By the definition: a sum over the kernel's cells of shifted images, zeros around."""
    side = len(kernel)
    padded = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2), (0, 0)))
    height, width = x.shape[1], x.shape[2]
    cells = itertools.product(range(side), range(side))
    total = sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in cells)
    return total[:, ::stride, ::stride]


def numpy_pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


@pytest.mark.parametrize("side, stride", [(3, 2), (3, 1), (1, 1)])
def test_convolutions_are_padded_alike_on_all_sides(side, stride):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    conv = Conv(5, side, stride)
    variables = random_like(conv, x)
    expected = numpy_conv(x, variables["params"]["kernel"], stride)
    np.testing.assert_allclose(conv.apply(variables, jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first, halves, channels", [(True, True, 6), (True, False, 6), (False, False, 12)])
def test_a_block_by_its_definition(first, halves, channels):
    x = np.random.default_rng(0).normal(size=(2, 4, 6, channels)).astype(np.float32)
    block = Bottleneck(RESNET, 3, first, halves)
    variables = random_like(block, x)
    params, stats = variables["params"], variables["batch_stats"]

    def norm(y, name):
        shifted = (y - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5)
        return shifted * params[name]["scale"] + params[name]["bias"]

    pool = numpy_pool if halves else lambda y: y
    h = np.maximum(norm(numpy_conv(x, params["conv1"]["kernel"]), "bn1"), 0)
    h = np.maximum(norm(numpy_conv(h, params["conv2"]["kernel"]), "bn2"), 0)
    h = norm(numpy_conv(pool(h), params["conv3"]["kernel"]), "bn3")
    shortcut = norm(numpy_conv(pool(x), params["downsample_conv"]["kernel"]), "downsample_bn") if first else x
    found, _ = block.apply(variables, jnp.asarray(x))
    np.testing.assert_allclose(found, np.maximum(h + shortcut, 0), rtol=1e-4, atol=1e-4)


def test_the_pool_attends_from_the_mean_to_itself_and_all_positions():
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 128)).astype(np.float32)
    pool = AttentionPool(dataclasses.replace(RESNET, width=4))
    variables = random_like(pool, x)
    variables["params"] = jax.tree.map(lambda leaf: leaf / 16, variables["params"])
    params, flat = variables["params"], x.reshape(2, 6, 128)
    tokens = np.concatenate([flat.mean(1, keepdims=True), flat], 1) + params["position_embedding"]
    q, k, v = (tokens @ params[name]["kernel"] + params[name]["bias"] for name in "qkv")
    expected = np.zeros((2, 128))
    for row, head in itertools.product(range(2), range(2)):
        at = slice(64 * head, 64 * head + 64)
        scores = np.exp(k[row, :, at] @ q[row, 0, at] / 8)
        expected[row, at] = scores @ v[row, :, at] / scores.sum()
    np.testing.assert_allclose(pool.apply(variables, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_batch_and_the_rule_of_the_stored_ones():
    """Twice, far from zero: sums of squares alone would cancel there in float32."""
    x = np.random.default_rng(0).normal(3000, 2, size=(2, 4, 3, 5, 6)).astype(np.float32)
    norm = BatchNorm()
    variables = random_like(norm, x[0])
    stats = variables["batch_stats"] = {**variables["batch_stats"], "mean": np.full(6, 2990, np.float32)}
    mean, var = stats["mean"].astype(np.float64), stats["var"].astype(np.float64)
    for part in x:
        y, updated = norm.apply(variables, jnp.asarray(part), mutable=["batch_stats"])
        exact = part.astype(np.float64)
        expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
        params = variables["params"]
        np.testing.assert_allclose(y, expected * params["scale"] + params["bias"], atol=1e-2)
        mean = 0.9 * mean + 0.1 * exact.mean((0, 1, 2))
        var = 0.9 * var + 0.1 * exact.var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(updated["batch_stats"]["mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(updated["batch_stats"]["var"], var, rtol=1e-4)
        variables = {**variables, **updated}


def test_a_fresh_model_begins_as_published():
    variables = unbox(jax.jit(partial(init_variables, TINY))(jax.random.key(0)))
    vision, projection = variables["params"]["vision"], variables["params"]["vision_projection"]
    for block in [vision["layer2"]["rest"], *(vision[f"layer{i}"]["first"] for i in range(1, 5))]:
        assert not np.any(block["bn3"]["scale"]) and np.all(block["bn2"]["scale"] == 1)
    pool, deviation = vision["attnpool"], 128**-0.5
    for array in (pool["q"]["kernel"], pool["k"]["kernel"], pool["v"]["kernel"], pool["position_embedding"],
                  projection["kernel"]):  # fmt: skip
        assert abs(float(jnp.std(array)) / deviation - 1) < 5 / array.size**0.5
    for array in (pool["q"]["bias"], pool["v"]["bias"], projection["bias"]):  # the last has eight entries
        assert 0.5 * deviation < np.abs(array).max() <= deviation
    kernel = vision["layer4"]["first"]["conv2"]["kernel"]
    bound = (9 * kernel.shape[2]) ** -0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert all(np.all(x == (0 if name.endswith("mean") else 1)) for name, x in
               named_leaves(variables["batch_stats"]).items())  # fmt: skip


def features(config, variables, batch):
    pixels = normalize_pixels(jnp.asarray(batch["image"][:4]), config.vision)
    tower = {"params": variables["params"]["vision"], "batch_stats": variables["batch_stats"]["vision"]}

    def loss(params):
        y, updated = ModifiedResNet(config.vision).apply({**tower, "params": params}, pixels, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), (y, updated)

    gradients, aux = jax.jit(jax.grad(loss, has_aux=True))(tower["params"])
    return gradients, aux


def test_a_loop_and_recomputation_change_nothing(variables, batch):
    expected = features(TINY, variables, batch)
    for remat in (Remat.FULL, Remat.DOTS):
        resnet = dataclasses.replace(RESNET, scan=remat is Remat.FULL, remat=remat)
        config = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, resnet=resnet))
        found = features(config, variables, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)


def test_products_in_half_precision_stay_near(variables, batch):
    resnet = dataclasses.replace(RESNET, dtype="bfloat16")
    config = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, resnet=resnet))
    pixels = normalize_pixels(jnp.asarray(batch["image"]), TINY.vision)
    encode = jax.jit(lambda config: ClipModel(config).apply(variables, pixels, method="image_trunk"), static_argnums=0)
    exact, half = encode(TINY), encode(config)
    assert half.dtype == jnp.float32
    difference = float(jnp.linalg.norm(half - exact) / jnp.linalg.norm(exact))
    assert 1e-4 < difference < 0.05


def test_eight_devices_are_one(variables, batch):
    """Loss, gradients and stored statistics of one step; the parameters split too."""
    task, found = ClipTask(stage()), {}
    boxed = abstract_variables(TINY)
    for devices, mesh_config in ((1, MeshConfig()), (8, MeshConfig(data=4, fsdp=2))):
        mesh, rules = make_mesh(mesh_config, jax.devices()[:devices]), ShardingRules()
        params = jax.device_put(variables["params"], param_shardings(boxed["params"], mesh, rules))
        state = jax.device_put({"batch_stats": variables["batch_stats"]}, replicated(mesh))
        rows = jax.device_put(batch, batch_sharding(mesh, rules))
        step = partial(task.gradients, key=jax.random.key(0), step=jnp.int32(0), micro_batches=1)
        with jax.set_mesh(mesh), rules.context():
            found[devices] = jax.device_get(jax.jit(step)(params, state, rows))
        if devices == 8:
            kernel = params["vision"]["layer2"]["rest"]["conv2"]["kernel"]
            assert kernel.sharding.shard_shape(kernel.shape) == (2, 3, 3, 8, 4)
    (one, (one_state, one_metrics)), (eight, (eight_state, eight_metrics)) = found[1], found[8]
    assert one_metrics["loss"] == pytest.approx(eight_metrics["loss"], rel=1e-5)
    for name, array in named_leaves(one).items():
        # Entries near zero are differences of sums as large as the largest: the order of sums shows against those.
        atol = max(1e-5, 1e-4 * float(np.abs(array).max()))
        np.testing.assert_allclose(named_leaves(eight)[name], array, rtol=1e-3, atol=atol, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one_state, eight_state)
    # And finite, moved, of every parameter: the step trains all of the model.
    assert all(np.all(np.isfinite(x)) and np.any(x) for x in jax.tree.leaves(one))
    changed = jax.tree.map(lambda a, b: np.any(a != b), one_state["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(changed))


def test_micro_batches_are_refused(variables, batch):
    with pytest.raises(UserError, match=r"micro_batches is 2, and a ResNet normalises by .* whole batch"):
        ClipTask(stage(micro_batches=2))
    with pytest.raises(UserError, match="micro_batches is 4"):
        arguments = {"key": jax.random.key(0), "step": jnp.int32(0), "micro_batches": 4}
        ClipTask(stage()).gradients(variables["params"], {}, jax.tree.map(jnp.asarray, batch), **arguments)


def test_a_locked_tower_leaves_its_statistics(variables, batch):
    """It is run as in evaluation: nothing is taken from the batch, so that parts of one are a whole."""
    task = ClipTask(dataclasses.replace(stage(micro_batches=2), locked_tower=Lock.IMAGE))
    batch = jax.tree.map(jnp.asarray, batch)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    step = jax.jit(lambda: task.loss(params, state, batch, key=jax.random.key(0), step=jnp.int32(0)))
    loss, (after, _) = step()
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert float(loss) == pytest.approx(task.evaluate(params, state, [batch])["loss"], rel=1e-6)


class Pairs:
    """The same batch for ever."""

    bad_counts = {}
    captions_cut = 0
    part_counts = {}

    def __init__(self, batch):
        self.batch = batch

    def iterate(self, start, *, sharding):
        return itertools.repeat(jax.device_put(self.batch, sharding))

    def epoch(self, num_batches, *, sharding):
        return itertools.repeat(jax.device_put(self.batch, sharding), num_batches)


@pytest.fixture(scope="module")
def run(batch, tmp_path_factory):
    """A run of one step on eight devices that keeps an average, and its last row of metrics."""
    path, rows = tmp_path_factory.mktemp("run"), []
    train_tokenizer(["a red star", "a blue circle", "green squares on red"], 40, path / "tokenizer.model")
    config = stage(ema_decay=0.5)
    open_workdir(path, {"clip": config})
    pairs = Pairs(batch)
    state = train(
        ClipTask(config),
        config.train,
        mesh_config=MeshConfig(),
        batches=pairs,
        eval_batches=pairs,
        workdir=path / "clip",
        seed=0,
        on_row=lambda step, row: rows.append(row),
    )
    return path, jax.device_get(state.replace(key=None)), rows


def test_a_run_keeps_statistics_and_reads_them(run, batch):
    """`load` gives the average with the stored statistics, and what it was evaluated with while it trained."""
    path, state, rows = run
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True))
    clip = clip_jax.load(path)
    assert named_leaves(clip.variables).keys() == named_leaves(unbox(abstract_variables(TINY))).keys()
    average = {"params": state.ema, **state.model_state}
    jax.tree.map(np.testing.assert_array_equal, clip.variables, average)
    pixels = normalize_pixels(jnp.asarray(batch["image"]), TINY.vision)
    expected = ClipModel(TINY).apply(average, pixels, method="encode_image")
    np.testing.assert_allclose(clip.encode_image(batch["image"]), expected, rtol=1e-3, atol=1e-4)
    alone = clip.encode_image(batch["image"][5:6])  # no other image has a say
    np.testing.assert_allclose(alone, clip.encode_image(batch["image"])[5:6], rtol=1e-3, atol=1e-4)
    batch = jax.tree.map(jnp.asarray, batch)
    evaluated = ClipTask(stage()).evaluate(state.ema, state.model_state, [batch])
    (found,) = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert found == pytest.approx(evaluated["loss"], rel=1e-4)
    fresh = jax.tree.map(lambda x: np.ones_like(x), state.model_state)
    assert ClipTask(stage()).evaluate(state.ema, fresh, [batch])["loss"] != pytest.approx(found, rel=1e-3)


def test_fine_tuning_begins_with_the_statistics(run, batch, tmp_path):
    path, _, _ = run
    loaded = load_params(path / "clip")
    config = stage(ema_decay=0.5)
    again = train(
        ClipTask(config),
        config.train,
        mesh_config=MeshConfig(),
        batches=Pairs(batch),
        workdir=tmp_path,
        seed=1,
        init_from=path / "clip",
    )
    arguments = {"key": jax.random.key(0), "step": jnp.int32(0)}
    _, (expected, _) = jax.jit(partial(ClipTask(config).loss, **arguments))(loaded.params, loaded.model_state, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), jax.device_get(again.model_state), expected
    )


def test_probes_read_what_the_pool_projects(variables, batch):
    clip = Clip(
        TINY, variables["params"], lambda texts: batch["text"], model_state={"batch_stats": variables["batch_stats"]}
    )
    probed = clip.probe_features(batch["image"][:3])
    assert probed.shape == (3, 128) and clip.probe_features([]).shape == (0, 128)
    projection = variables["params"]["vision_projection"]
    projected = probed @ projection["kernel"] + projection["bias"]
    np.testing.assert_allclose(clip.encode_image(batch["image"][:3]), projected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: resnet_config(48, (1, 1, 1, 1), 4), "32 does not divide image_size 48"),
        (lambda: resnet_config(64, (1, 0, 1, 1), 4), "one block at least"),
        (lambda: resnet_config(64, (1, 1, 1, 1), 5), "width 5"),
        (lambda: resnet_config(64, (1, 1, 1, 1), 4, dtype="float16"), "float16"),
        (lambda: dataclasses.replace(TINY.vision, transformer=tower_config(1, 64)), "no `transformer`"),
        (lambda: dataclasses.replace(TINY.vision, resnet=None), "has the sizes `resnet`"),
        (lambda: dataclasses.replace(TINY.vision, patch_size=16), "patch_size of a ResNet is 32"),
    ],
)
def test_sizes_that_are_no_tower(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_block_in_bfloat16_passes_on_what_it_gets():
    """With a small last gain its shortcut is the larger part by far, and must not be rounded at every block."""
    x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 4 * RESNET.width))
    block = partial(Bottleneck, planes=RESNET.width, first=False, halves=False)
    exact, coarse = (block(dataclasses.replace(RESNET, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    variables = random_like(exact, x)
    variables["params"]["bn3"]["scale"] /= 1000
    wanted, found = (np.asarray(block.apply(variables, x)[0] - x, np.float32) for block in (exact, coarse))
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
