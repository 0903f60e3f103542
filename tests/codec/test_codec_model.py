"""Both bodies: published sizes, shapes, and the shortcuts against what they stand for."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from dalle_jax.codec import (
    Body,
    Codec,
    CodecConfig,
    ConvConfig,
    FrozenCodec,
    PatchConfig,
    Relaxation,
    VqConfig,
    decode,
    encode,
    load_codec,
)
from dalle_jax.codec.conv_backbone import Block
from dalle_jax.codec.flops import decoder_flops, encoder_flops
from dalle_jax.codec.layers import depth_to_space, max_pool, space_to_depth, upsample
from dalle_jax.codec.patch_backbone import shift_channels
from dalle_jax.codec.relaxation import init_codebook
from dalle_jax.errors import UserError
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding

CONV = ConvConfig(hidden_dim=8, decoder_input_dim=8, num_groups=3, blocks_per_group=1)
PATCH = PatchConfig(fine_patch=2, merge=2, fine_dim=12, fine_blocks=1, token_dim=20, encoder_blocks=1, decoder_blocks=1)
CONFIGS = {
    f"{body.value}-{relaxation.value}": CodecConfig(
        codebook_size=32, body=body, relaxation=relaxation, conv=CONV, patch=PATCH, vq=VqConfig(code_dim=4)
    )
    for body in Body
    for relaxation in Relaxation
}
IMAGE_SIZE = 16


@functools.cache
def weights_of(config):
    """Parameters and model state, as numpy arrays."""
    images = jax.ShapeDtypeStruct((1, config.stride, config.stride, 3), jnp.uint8)
    shapes = nn.unbox(jax.eval_shape(Codec(config).init, jax.random.key(0), images))["params"]
    # Biases and the patch body's last layers start at zero: a test wants everything to matter.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, max(x.size, 64) ** -0.25, x.shape)), shapes)
    if config.relaxation is Relaxation.GUMBEL:
        return params, {}
    return params, jax.device_get(init_codebook(config.vq, config.codebook_size, jax.random.key(1)))


@functools.partial(jax.jit, static_argnames=("config", "method"))
def apply(config, params, *inputs, method):
    return Codec(config).apply({"params": params}, *inputs, method=method)


def pictures(count=4, size=IMAGE_SIZE):
    return np.random.default_rng(5).integers(0, 256, (count, size, size, 3), np.uint8)


def test_published_parameter_counts():
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
    params = nn.unbox(jax.eval_shape(Codec(CodecConfig()).init, jax.random.key(0), images))["params"]
    counts = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    assert counts == {"encoder": 53_786_240, "decoder": 43_829_766}
    assert {name: len(jax.tree.leaves(tree)) for name, tree in params.items()} == {"encoder": 74, "decoder": 76}
    assert params["encoder"]["blocks"]["group_1"]["block_1"]["res_path"]["conv_1"]["kernel"].shape == (3, 3, 256, 64)
    assert CodecConfig().grid_size(256) == 32


def test_published_initialisation():
    config = CodecConfig(codebook_size=512, conv=ConvConfig(hidden_dim=64, num_groups=2))
    params = nn.unbox(jax.jit(Codec(config).init)(jax.random.key(0), pictures(1, 8)))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "bias":
            assert not leaf.any()
        elif leaf.size > 5_000:
            fan_in = np.prod(leaf.shape[:3])
            np.testing.assert_allclose(leaf.std(), fan_in**-0.5, rtol=0.05)


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name):
    config = CONFIGS[name]
    params, model_state = weights_of(config)
    codec = FrozenCodec(config, params, model_state, IMAGE_SIZE)
    images = pictures()
    tokens = codec.encode(images)
    grid = config.grid_size(IMAGE_SIZE)
    assert tokens.shape == (4, grid**2) and tokens.dtype == jnp.int32
    assert tokens.min() >= 0 and tokens.max() < 32 and len(np.unique(tokens)) > 1
    again = codec.decode(tokens)
    assert again.shape == images.shape and again.dtype == jnp.uint8
    as_grid = jax.jit(encode, static_argnums=0)(config, params, model_state, images)
    np.testing.assert_array_equal(as_grid.reshape(4, -1), tokens)  # raster order
    directly = jax.jit(decode, static_argnums=0)(config, params, model_state, as_grid)
    assert abs(directly.astype(int) - again.astype(int)).max() <= 1  # compiled apart, roundings may differ


@pytest.mark.parametrize("body", Body)
def test_looking_tokens_up_is_the_product_with_one_hot_vectors(body):
    config = CONFIGS[f"{body.value}-gumbel"]
    params, _ = weights_of(config)
    tokens = jax.random.randint(jax.random.key(2), (2, 4, 4), 0, 32)
    looked_up = apply(config, params, tokens, method="decode_tokens")
    product = apply(config, params, jax.nn.one_hot(tokens, 32), method="decode")
    np.testing.assert_allclose(looked_up, product, rtol=1e-4, atol=1e-5)


def test_a_block_that_upsamples_late_is_the_block_of_the_upsampled_input():
    early, late = (Block(8, (1, 3, 3, 3), 0.25, jnp.float32, upsampled=flag) for flag in (False, True))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 12))
    params = jax.jit(early.init)(jax.random.key(1), x)
    expected = jax.jit(early.apply)(params, upsample(x))
    np.testing.assert_allclose(jax.jit(late.apply)(params, x), expected, rtol=1e-4, atol=1e-5)


def test_changes_of_resolution():
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(upsample(x), x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_array_equal(max_pool(x), x[:, 1::2, 1::2])  # values grow along every axis
    packed = space_to_depth(x, 2)
    assert packed.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(packed[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(depth_to_space(packed, 2), x)


def test_shifts_bring_in_all_eight_neighbours():
    x = jnp.zeros((1, 5, 5, 9)).at[0, 2, 2].set(1.0)
    shifted = shift_channels(x)[0]
    assert shifted.shape == (5, 5, 9)
    np.testing.assert_array_equal(shifted.sum(-1)[1:4, 1:4], np.ones((3, 3)))
    assert shifted.sum() == 9 and not shift_channels(x.at[:].set(0).at[0, 0, 0, 8].set(1.0))[0].any()


def test_flops_by_formula_are_those_of_the_traced_program():
    images, tokens = pictures(1), jnp.zeros((1, 4, 4), jnp.int32)
    for config in CONFIGS.values():
        weights = weights_of(config)
        for function, argument, expected in (
            (encode, images, encoder_flops(config, IMAGE_SIZE)),
            (decode, tokens, decoder_flops(config, IMAGE_SIZE)),
        ):
            program = jax.make_jaxpr(function, static_argnums=0)(config, *weights, argument)
            assert _product_flops(program.jaxpr) == expected


def _product_flops(jaxpr) -> float:
    """FLOPs of the matrix products and convolutions in a program without loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * np.prod([shape[axis] for axis in contracted])
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[-1]
        for inner in jaxprs_in_params(equation.params):
            total += _product_flops(inner)
    return total


def test_the_frozen_codec_on_a_mesh():
    config = CONFIGS["conv-vq"]
    codec = FrozenCodec(config, *weights_of(config), IMAGE_SIZE)
    images = pictures(8)
    expected = codec.encode(images)
    mesh, rules = make_mesh(MeshConfig(data=8)), ShardingRules()
    with jax.set_mesh(mesh):
        tokens = codec.encode(jax.device_put(images, batch_sharding(mesh, rules)))
    np.testing.assert_array_equal(tokens, expected)
    assert len(tokens.sharding.device_set) == 8


def test_the_frozen_codec_inside_a_callers_jit():
    """What it keeps of its first use there serves every later one."""
    config = CONFIGS["conv-vq"]
    expected = FrozenCodec(config, *weights_of(config), IMAGE_SIZE).encode(pictures(2))
    codec = FrozenCodec(config, *weights_of(config), IMAGE_SIZE)
    inside = jax.jit(lambda images: codec.encode(images) + 0)(pictures(2))
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_array_equal(codec.encode(pictures(2)), expected)


@pytest.mark.parametrize("images", [pictures(2) / 255, pictures(2)[..., :1], pictures(2)[0]])
def test_what_is_no_picture_is_refused(images):
    config = CONFIGS["patch-vq"]
    with pytest.raises(ValueError, match="the codec takes uint8"):
        FrozenCodec(config, *weights_of(config), IMAGE_SIZE).encode(images)


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of the codec's 8: try 32"):
        CodecConfig().grid_size(30)
    with pytest.raises(ValueError, match="multiple of 4"):
        ConvConfig(hidden_dim=30)
    with pytest.raises(ValueError, match="decay"):
        VqConfig(decay=1.0)
    config = CONFIGS["patch-vq"]
    codec = FrozenCodec(config, *weights_of(config), IMAGE_SIZE)
    with pytest.raises(ValueError, match="16 pixels a side"):
        codec.encode(pictures(1, 32))
    with pytest.raises(ValueError, match="has 16 tokens, not 15"):
        codec.decode(jnp.zeros((1, 15), jnp.int32))
    with pytest.raises(UserError, match=r"config.json is missing"):
        load_codec(tmp_path)


def test_bfloat16_changes_little():
    config = CONFIGS["conv-gumbel"]
    params, _ = weights_of(config)
    half = dataclasses.replace(config, dtype="bfloat16")
    images = pictures()
    logits, rough = (apply(c, params, images, method="encode") for c in (config, half))
    assert rough.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(rough - logits) < 0.03 * jnp.linalg.norm(logits)


def test_a_block_in_bfloat16_loses_little_of_what_it_adds():
    """The published gain is 1/64: summed in bfloat16, 39% of what a fresh block adds would be rounded away."""
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 64))
    sizes = dict(features=64, kernel_sizes=(3, 3, 3, 1), residual_scale=1 / 64)
    exact, coarse = (Block(**sizes, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = exact.init(jax.random.key(1), x)
    wanted, found = (np.asarray(block.apply(params, x) - x) for block in (exact, coarse))
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
