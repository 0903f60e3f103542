"""SigLIP: what its towers look at, how they begin, and the handle and the task around them."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax import (
    Clip,
    ClipConfig,
    ClipModel,
    ClipStage,
    ClipTask,
    Lock,
    Loss,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    tower_config,
)
from clip_jax.evaluation.zero_shot import class_directions, class_probabilities
from clip_jax.flops import image_flops, step_flops, text_flops
from clip_jax.losses.base import normalize
from clip_jax.model import abstract_params, init_params
from clip_jax.preprocessing.images import preprocess, preprocess_on_device
from clip_jax.weights.siglip import LOGITS, PIXELS
from configs import clip as presets
from dalle_jax.config import from_config_dict
from dalle_jax.data.config import Augment
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from dalle_jax.training.optimizer import decay_mask, make_optimizer
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, param_shardings
from dalle_jax.training.state import TrainState
from dalle_jax.training.step import make_train_step
from dalle_jax.training.trees import named_leaves

END = 1
BLOCKS = tower_config(2, 32, head_dim=16, mlp_dim=48, activation=Activation.GELU_TANH, norm_epsilon=1e-6)
TINY = ClipConfig(
    32,
    VisionConfig(20, 8, BLOCKS, VisionTower.SIGLIP, **PIXELS),  # 20 = 2 x 8 + 4: four pixels are left out
    TextConfig(50, 10, END, BLOCKS, TextTower.SIGLIP),
    **LOGITS,
)


def tokenize(texts):
    """An id a word, ends and pads with 1."""
    rows = [[2 + int(word) for word in text.split()] for text in texts]
    return np.asarray([(row + [END] * 10)[:10] for row in rows], np.int32)


def fresh(config):
    return nn.meta.unbox(jax.jit(partial(init_params, config))(jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
    return fresh(TINY)


@pytest.fixture(scope="module")
def clip(params):
    return Clip(TINY, params, tokenize, batch_size=4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (16, 20, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def batch(images):
    texts = [" ".join(map(str, range(i, i + 1 + i % 5))) for i in range(16)]
    return {"image": jnp.asarray(images), "text": jnp.asarray(tokenize(texts))}


def stage(**changes):
    optimizer = OptimizerConfig(learning_rate=1e-2, b2=0.95)
    return ClipStage(TINY, TrainConfig(batch_size=16, num_steps=10, optimizer=optimizer), Augment.SQUARE, **changes)


def test_dropped_patches_are_not_read_in_training(params, images):
    config = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, patch_dropout=0.5))
    pixels = jnp.asarray(images[:4], jnp.float32) / 255

    def features(pixels, **options):
        return ClipModel(config).apply({"params": params}, pixels, method="encode_image", **options)

    def trained(pixels):
        return features(pixels, train=True, rngs={"dropout": jax.random.key(3)}).sum()

    read = jnp.abs(jax.jit(jax.grad(trained))(pixels))[:, :16, :16].reshape(4, 2, 8, 2, 8, 3).sum(axis=(2, 4, 5)) > 0
    assert read.sum(axis=(1, 2)).tolist() == [2] * 4 and len({str(row) for row in read.tolist()}) > 1
    whole = ClipModel(TINY).apply({"params": params}, pixels, method="encode_image")
    np.testing.assert_array_equal(features(pixels), whole)


def test_dropout_in_training_alone(params, batch):
    def with_dropout(tower):
        return dataclasses.replace(tower, transformer=dataclasses.replace(tower.transformer, dropout=0.5))

    config = dataclasses.replace(TINY, vision=with_dropout(TINY.vision), text=with_dropout(TINY.text))
    model = ClipModel(config)
    for method, inputs in (("encode_image", batch["image"][:4] / 255), ("encode_text", batch["text"][:4])):
        whole = ClipModel(TINY).apply({"params": params}, inputs, method=method)
        np.testing.assert_array_equal(model.apply({"params": params}, inputs, method=method), whole)
        one, two = (
            model.apply({"params": params}, inputs, method=method, train=True, rngs={"dropout": jax.random.key(seed)})
            for seed in (0, 1)
        )
        assert np.abs(one - two).max() > 1e-3 and np.abs(one - whole).max() > 1e-3


@pytest.mark.parametrize(
    "name, count",
    [("siglip_b16", 203_155_970), ("siglip_so400m14", 877_360_306), ("siglip_so400m14_384", 877_960_498)],
)
def test_published_parameter_counts(name, count):
    """Those of transformers' `SiglipModel`, which the comparison with it counts again."""
    model = from_config_dict(ClipStage, presets.get_config(name).clip).model
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model))) == count


def test_the_presets_decay_kernels_alone():
    found = from_config_dict(ClipStage, presets.get_config("siglip_b16").clip)
    mask = named_leaves(decay_mask(abstract_params(found.model), found.train.optimizer.no_decay))
    assert {name.split("/")[-1] for name, decays in mask.items() if decays} == {"kernel", "qkv_kernel"}


def test_published_initialisers():
    blocks = tower_config(2, 256, mlp_dim=384, activation=Activation.GELU_TANH)
    vision = VisionConfig(64, 8, blocks, VisionTower.SIGLIP)
    params = fresh(ClipConfig(256, vision, TextConfig(500, 40, END, blocks, TextTower.SIGLIP), **LOGITS))
    text, vision = params["text"], params["vision"]
    layer, pooling = vision["transformer"]["group"]["layer_0"], vision["pooling"]
    xavier = lambda fan_in, fan_out: (2 / (fan_in + fan_out)) ** 0.5  # noqa: E731
    std = {
        "token": (text["token_embedding"]["embedding"], 1 / 16),
        "text position": (text["position_embedding"], 1 / 16),
        "vision position": (vision["position_embedding"], 1 / 16),
        "head": (params["text_projection"]["kernel"], 1 / 16),
        "patch": (vision["patch_embedding"]["kernel"], 192**-0.5),
        "qkv": (layer["attention"]["qkv_kernel"], xavier(256, 256)),
        "out": (layer["attention"]["out"]["kernel"], xavier(256, 256)),
        "mlp in": (layer["mlp"]["in"]["kernel"], xavier(256, 384)),
        "mlp out": (text["transformer"]["group"]["layer_0"]["mlp"]["out"]["kernel"], xavier(256, 384)),
        "mlp bias": (layer["mlp"]["in"]["bias"], 1e-6),
        "probe": (pooling["probe"], xavier(1, 256)),
        "pooling qkv": (pooling["qkv_kernel"], xavier(256, 256)),
        "pooling mlp": (pooling["mlp"]["out"]["kernel"], xavier(256, 384)),
    }
    for name, (array, expected) in std.items():
        assert abs(float(jnp.std(array)) / expected - 1) < 5 / array.size**0.5, name
    assert float(jnp.exp(params["logit_scale"])) == pytest.approx(10) and params["logit_bias"] == -10
    assert not jnp.any(vision["patch_embedding"]["bias"]) and not jnp.any(pooling["qkv_bias"])


def test_text_attends_both_ways_and_stands_at_the_last_position(params):
    """In the embedding of positions, the only input that can be differentiated, row t stands for position t."""
    ids = jnp.asarray(tokenize(["5 6 7"]))

    def feature(positions, layers):
        blocks = dataclasses.replace(BLOCKS, num_layers=layers)
        config = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, transformer=blocks))
        group = jax.tree.map(lambda x: x[:layers], params["text"]["transformer"])
        text = {**params["text"], "position_embedding": positions, "transformer": group}
        return jnp.sum(ClipModel(config).apply({"params": {**params, "text": text}}, ids, method="encode_text") ** 2)

    touched = jnp.any(jax.grad(feature)(params["text"]["position_embedding"], 1) != 0, axis=-1)
    assert touched.all()  # every position, those of pads too, whose tokens are alike
    text, head = params["text"], params["text_projection"]
    table = text["token_embedding"]["embedding"][ids[0]] + text["position_embedding"]
    still = {**text, "transformer": jax.tree.map(jnp.zeros_like, text["transformer"])}  # blocks that add nothing
    found = ClipModel(TINY).apply({"params": {**params, "text": still}}, ids, method="encode_text")[0]
    last = table[-1] - table[-1].mean()
    expected = last / jnp.sqrt(jnp.mean(last**2) + 1e-6) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_picture_is_pooled_by_a_query_of_its_own(params):
    """All blocks adding nothing, and the pooling by hand: softmax over patches of probe and keys, head by head."""
    vision = params["vision"]
    vision = {**vision, "transformer": jax.tree.map(jnp.zeros_like, vision["transformer"])}
    rng = np.random.default_rng(0)
    pooling = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), vision["pooling"])
    pixels = rng.normal(size=(1, 20, 20, 3)).astype(np.float32)
    found = ClipModel(TINY).apply(
        {"params": {**params, "vision": {**vision, "pooling": pooling}}}, jnp.asarray(pixels), method="encode_image"
    )[0]

    def norm(x, module=None):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x if module is None else x * module["scale"] + module["bias"]

    squares = [pixels[0, i : i + 8, j : j + 8].reshape(-1) for i in (0, 8) for j in (0, 8)]
    embedding = vision["patch_embedding"]
    x = norm(np.stack(squares) @ embedding["kernel"] + embedding["bias"] + vision["position_embedding"])
    q, k, v = (
        np.asarray(y @ pooling["qkv_kernel"][:, i] + pooling["qkv_bias"][i]).reshape(-1, 2, 16)
        for i, y in enumerate((pooling["probe"][None], x, x))
    )
    attended = []
    for head in range(2):
        weights = np.exp(k[:, head] @ q[0, head] / 4)
        attended.append(weights @ v[:, head] / weights.sum())
    y = np.concatenate(attended) @ pooling["out"]["kernel"] + pooling["out"]["bias"]
    h = nn.gelu(norm(y, pooling["norm"]) @ pooling["mlp"]["in"]["kernel"] + pooling["mlp"]["in"]["bias"])
    expected = y + h @ pooling["mlp"]["out"]["kernel"] + pooling["mlp"]["out"]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert "vision_projection" not in params


def test_captions_are_never_cut(clip, params):
    texts = ["3", "4 5 6 7 8", ""]
    whole = ClipModel(TINY).apply({"params": params}, jnp.asarray(tokenize(texts)), method="encode_text")
    np.testing.assert_allclose(clip.encode_text(texts), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="reads captions of 10 positions, not 8"):
        ClipModel(TINY).apply({"params": params}, jnp.zeros((1, 8), jnp.int32), method="encode_text")


@pytest.mark.parametrize("shape", [(20, 20), (31, 47), (90, 13)])
def test_pictures_are_squeezed_into_the_square(clip, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((20, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(preprocess([picture], 20, Augment.SQUARE)[0], expected)
    on_device = preprocess_on_device(jnp.asarray(picture)[None], 20, Augment.SQUARE)[0]
    # Pillow rounds and clips between its two passes, which shows where noise is squeezed hard.
    difference = np.abs(np.asarray(on_device) - expected)
    assert difference.max() <= 5 and difference.mean() < 0.5
    np.testing.assert_allclose(clip.encode_image([picture]), clip.encode_image(expected[None]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="'clip_inference' or 'square', not 'dvae'"):
        dataclasses.replace(TINY.vision, preprocessing=Augment.DVAE)


def test_scores_are_logits_of_pairs(clip, params, images):
    texts = ["1 2", "3", "4"]
    output = ClipModel(TINY).apply(
        {"params": params}, jnp.asarray(images[:3] / 127.5 - 1, jnp.float32), jnp.asarray(tokenize(texts))
    )
    logits = output.logit_scale * normalize(output.image) @ normalize(output.text).T + output.logit_bias
    np.testing.assert_allclose(clip.score(images[:3], texts), jnp.diag(logits), rtol=1e-4)
    for given in (images[:3], jnp.asarray(images[:3])):
        found = clip.pair_probability(given, "3")
        np.testing.assert_allclose(found, jax.nn.sigmoid(logits[:, 1]), rtol=1e-3)
        assert isinstance(found, type(given) if isinstance(given, np.ndarray) else jax.Array)
    names, templates = ["1", "2", "3"], ["{} 7", "5 {}"]
    directions = class_directions(clip.encode_text, names, templates)
    expected = class_probabilities(clip.encode_image(images[:3]), directions, clip.logit_scale)
    np.testing.assert_allclose(clip.zero_shot(images[:3], names, templates), expected, rtol=1e-5)
    np.testing.assert_allclose(expected.sum(axis=-1), 1, rtol=1e-5)


def test_a_softmax_gives_no_probability_of_a_pair(params, images):
    config = dataclasses.replace(TINY, loss=Loss.SOFTMAX)
    clip = Clip(config, {name: leaf for name, leaf in params.items() if name != "logit_bias"}, tokenize)
    with pytest.raises(UserError, match="trained with the softmax loss"):
        clip.pair_probability(images[:1], "1")
    assert clip.logit_bias == 0


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="32 is not embed_dim 16"):
        dataclasses.replace(TINY, embed_dim=16)
    with pytest.raises(ValueError, match="patch_size 8"):
        dataclasses.replace(TINY.vision, tower=VisionTower.VIT)


@pytest.mark.parametrize("loss", list(Loss))
@pytest.mark.parametrize("chunk", [0, 2])
def test_on_eight_devices_accumulated_or_not_the_gradients_are_those_of_one(params, batch, loss, chunk):
    config = dataclasses.replace(TINY, loss=loss)
    params = params if loss == Loss.SIGMOID else {k: v for k, v in params.items() if k != "logit_bias"}
    arguments = {"key": jax.random.key(0), "step": jnp.int32(0)}

    def gradients(task, parts):
        def run(params, batch):
            return task.gradients(params, {}, batch, **arguments, micro_batches=parts)

        return jax.jit(run)

    plain = ClipTask(dataclasses.replace(stage(), model=config))
    expected, (_, metrics) = gradients(plain, 1)(params, batch)
    task = ClipTask(dataclasses.replace(stage(loss_chunk=chunk), model=config))
    mesh, rules = make_mesh(MeshConfig(8)), ShardingRules()
    boxed = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    with jax.set_mesh(mesh), rules.context():
        placed = jax.device_put(params, param_shardings(boxed, mesh, rules))
        shards = jax.device_put(batch, batch_sharding(mesh, rules))
        for parts in (1, 2):
            found, (_, its) = gradients(task, parts)(placed, shards)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), its, metrics)
        evaluated = task.evaluate(placed, {}, [shards])
    assert evaluated.keys() == {"loss", "text_retrieval_at_1", "image_retrieval_at_1"}
    assert evaluated["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-4)
    assert evaluated["text_retrieval_at_1"] == pytest.approx(float(metrics["image_accuracy"]))


def test_training_learns_and_leaves_the_scale_free(params, batch):
    task, config = ClipTask(stage()), stage().train
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    begin = {**params, "logit_scale": jnp.float32(6.0)}  # beyond the bound of the softmax loss
    state = TrainState(jnp.int32(0), begin, optimizer.init(begin), {}, None, jax.random.key(0))
    step = jax.jit(make_train_step(task, config, optimizer))
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert state.params["logit_scale"] > 5 and metrics["logit_bias"] != -10
    assert task.preview(state.params, {}, batch).dtype == np.uint8


def test_useful_flops():
    """ViT-B/16's 17.6 G an image of multiplications and additions counted once, a little less without class token."""
    stage = from_config_dict(ClipStage, presets.get_config("siglip_b16").clip)
    model = stage.model
    blocks = 12 * (196 * 12 * 768**2 + 2 * 196**2 * 768)
    pooling = 2 * 196 * 768**2 + 768**2 + 2 * 196 * 768 + 2 * 768 * 3072
    assert image_flops(model.vision, 768) == 2 * (196 * 768**2 + blocks + pooling)
    assert text_flops(model.text, 768) == 2 * (12 * (64 * 12 * 768**2 + 2 * 64**2 * 768) + 768**2)
    locked = step_flops(dataclasses.replace(stage, locked_tower=Lock.IMAGE), 1)
    two_blocks = dataclasses.replace(stage, locked_tower=Lock.IMAGE, unlocked_layers=2)
    assert step_flops(two_blocks, 1) - locked == 2 * 2 * (blocks // 6 + pooling), "what pools is trained too"
    one, two = step_flops(stage, 1), step_flops(stage, 2)
    assert two - 2 * one == 3 * 2 * 2 * 768  # one product of logits: four of two, less two of one
