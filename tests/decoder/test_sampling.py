"""Drawing: noise by (seed, candidate) alone, filters, guidance, priming."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.decoder.model import Decoder, init_params
from dalle_jax.decoder.sampling import (
    Prime,
    SamplingConfig,
    candidate_keys,
    choose,
    filter_logits,
    guide,
    no_prime,
    prefill,
    sample_tokens,
    sampling_params,
    with_empty_captions,
)
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import Pattern
from dalle_jax.nn.cpu_decoding import DecodingLayout
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh

CONFIG = DecoderConfig(
    num_layers=4, num_heads=2, head_dim=8, embed_dim=16, mlp_dim=32, text_vocab_size=20, text_length=5,
    codebook_size=13, grid_size=4, conv_kernel=3, remat=Remat.NONE, dtype="float32",
    patterns=(Pattern.ROW, Pattern.COLUMN, Pattern.CONV, Pattern.FULL),
)  # fmt: skip
TEXT = jnp.array([[2, 5, 6, 0, 0], [2, 7, 8, 9, 3]])


@pytest.fixture(scope="module")
def params():
    fresh = nn.unbox(jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), fresh)


def drawn(params, indices, sampling=None, text=TEXT, prime=None, seed=7):
    sampling = sampling or SamplingConfig()
    prompts = text.shape[0]
    text_kv = prefill(CONFIG, params, with_empty_captions(text) if sampling.guided else text)
    keys = candidate_keys(seed, jnp.asarray(indices))
    return np.asarray(sample_tokens(CONFIG, params, text_kv, keys, prime or no_prime(CONFIG, prompts), sampling))


@pytest.fixture(scope="module")
def eight(params):
    return drawn(params, range(8))


def test_tokens_are_codes_and_candidates_differ(eight):
    assert eight.shape == (8, 2, 16) and eight.min() >= 0 and eight.max() < 13
    assert len({candidate.tobytes() for candidate in eight}) == 8


def test_a_candidate_does_not_depend_on_the_chunk_it_is_drawn_in(params, eight):
    np.testing.assert_array_equal(drawn(params, [5, 2]), eight[[5, 2]])
    np.testing.assert_array_equal(drawn(params, [7, 7, 0, 3]), eight[[7, 7, 0, 3]])


def test_a_candidate_does_not_depend_on_the_other_prompts(params, eight):
    np.testing.assert_array_equal(drawn(params, range(8), text=TEXT[1:])[:, 0], eight[:, 1])


def test_a_candidate_does_not_depend_on_the_mesh(params, eight):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), nn.logical_axis_rules([("batch", "data"), ("embed", None), ("vocab", None)]):
        keys = jax.device_put(
            candidate_keys(7, jnp.arange(8)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        )
        tokens = sample_tokens(
            CONFIG, params, prefill(CONFIG, params, TEXT), keys, no_prime(CONFIG, 2), SamplingConfig()
        )
        assert not tokens.sharding.is_fully_replicated
    np.testing.assert_array_equal(tokens, eight)


def test_one_cpu_device_reads_rows_and_a_mesh_the_stack():
    one, many = make_mesh(MeshConfig(data=1), jax.devices()[:1]), make_mesh(MeshConfig(data=8))
    assert (DecodingLayout.fastest(one), DecodingLayout.fastest(many)) == (DecodingLayout.ROWS, DecodingLayout.STACKED)


def test_the_layout_changes_no_token(params, eight):
    rows = sampling_params(CONFIG, params, DecodingLayout.ROWS)
    assert sum(x.size for x in jax.tree.leaves(rows)) == sum(x.size for x in jax.tree.leaves(params))
    np.testing.assert_array_equal(drawn(rows, range(8)), eight)
    again = sampling_params(CONFIG, rows, DecodingLayout.ROWS)
    assert jax.tree.structure(again) == jax.tree.structure(rows)


def test_kernels_are_cast_once_and_heads_stay_float32(params):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    many = sampling_params(config, params, DecodingLayout.STACKED)
    assert many["transformer"]["tail"].keys() == params["transformer"]["tail"].keys()  # stays as it is trained
    for tree in (many, sampling_params(config, params, DecodingLayout.ROWS)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            inside = path[0].key == "transformer" and "kernel" in path[-1].key
            assert leaf.dtype == (jnp.bfloat16 if inside else jnp.float32), jax.tree_util.keystr(path)


@pytest.mark.parametrize("layout", DecodingLayout)
def test_no_step_copies_a_cache(params, layout):
    """The loop writes into its caches in place; copies of a few megabytes a layer would take half of a step."""
    config = dataclasses.replace(CONFIG, num_layers=3, patterns=(Pattern.FULL,) * 3)
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    params = sampling_params(config, params, layout)
    text_kv, keys = prefill(config, params, TEXT), candidate_keys(0, jnp.arange(3))
    compiled = (
        sample_tokens.lower(config, params, text_kv, keys, no_prime(config, 2), SamplingConfig()).compile().as_text()
    )
    cache = r"f32\[(?:3,)?3,2,2,16,8\]"  # layers where they are stacked, candidates, prompts, heads, slots, head_dim
    assert re.search(cache, compiled)
    loops = compiled[: compiled.index("\nENTRY ")]  # what runs before the loop may copy
    assert not re.findall(rf"= {cache}\S* copy\(.*", loops)


def test_numbers_are_arguments_of_a_program(params):
    """Trying a temperature, a `top_p` or a guidance scale does not compile the loop again; what they ask for counts."""
    options = {"temperature": 0.9, "top_p": 0.9, "guidance_scale": 2.0}
    first = drawn(params, [0, 1], SamplingConfig(**options))
    compiled = sample_tokens._cache_size()
    for other in ({"temperature": 1.7}, {"top_p": 0.3}, {"guidance_scale": 5.0}):
        assert (drawn(params, [0, 1], SamplingConfig(**(options | other))) != first).any(), other
    assert sample_tokens._cache_size() == compiled


def test_another_seed_is_other_noise(params, eight):
    assert (drawn(params, range(8), seed=8) != eight).any()


def test_every_seed_up_to_32_bits_has_noise_of_its_own(params):
    seeds = (0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
    keys = [np.asarray(jax.random.key_data(candidate_keys(seed, jnp.arange(3)))) for seed in seeds]
    assert len({row.tobytes() for rows in keys for row in rows}) == 3 * len(seeds)
    tokens = drawn(params, range(8), seed=2**32 - 1)
    np.testing.assert_array_equal(drawn(params, [6, 1], seed=2**32 - 1), tokens[[6, 1]])


def test_greedy_tokens_are_the_argmax_of_the_full_pass(params):
    tokens = drawn(params, [0, 1], SamplingConfig(temperature=0.0))
    np.testing.assert_array_equal(tokens[0], tokens[1])
    output = Decoder(CONFIG).apply({"params": params}, TEXT, jnp.asarray(tokens[0]))
    np.testing.assert_array_equal(np.argmax(output.image, -1), tokens[0])


def test_draws_follow_the_probabilities():
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    keys = candidate_keys(0, jnp.arange(4000))
    tokens = choose(jnp.broadcast_to(logits, (4000, 1, 3)), keys, jnp.int32(3), SamplingConfig())
    # Standard deviation of a share of 4000 draws is below 0.008.
    np.testing.assert_allclose(np.bincount(np.ravel(tokens)) / 4000, [0.1, 0.2, 0.7], atol=0.03)


def test_temperature_top_k_and_top_p():
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    kept = lambda **options: np.isfinite(filter_logits(logits, SamplingConfig(**options))).tolist()  # noqa: E731
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_k=100) == [True] * 4
    assert kept(top_p=0.65) == [True, True, False, False]
    assert kept(top_p=0.75) == [True, True, True, False]
    assert kept(top_p=0.01) == [True, False, False, False]
    assert kept(top_p=1.0) == [True] * 4
    assert kept(top_p=1e-9) == kept(top_p=1e-300) == [True, False, False, False]  # the second is 0 in float32
    assert kept(top_k=3, top_p=0.7) == [True, True, False, False]  # 0.3 of 0.9 ends past 0.7
    at_half = filter_logits(logits, SamplingConfig(temperature=0.5))
    np.testing.assert_allclose(jax.nn.softmax(at_half), jax.nn.softmax(2 * logits), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 2}], ids=str)
@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 3e-38, 1e-38, 1e-45, 5e-324])
def test_small_temperatures_take_the_most_likely_code(temperature, options):
    """Where 31 / temperature is not a float32 number, too."""
    logits = jnp.array([30.0, 31.0, -5.0, 30.5])
    sampling = SamplingConfig(temperature=temperature, **options)
    tokens = jax.jit(choose)(jnp.broadcast_to(logits, (200, 1, 4)), candidate_keys(0, jnp.arange(200)), 3, sampling)
    assert (np.asarray(tokens) == 1).all()


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_large_temperatures_draw_all_codes_alike(temperature):
    logits = jnp.broadcast_to(jnp.array([30.0, -31.0]), (2000, 1, 2))
    tokens = choose(logits, candidate_keys(0, jnp.arange(2000)), jnp.int32(3), SamplingConfig(temperature))
    assert 0.45 < np.mean(tokens) < 0.55


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"guidance_scale": 1e30},
        *({name: float(value)} for name in ("temperature", "top_p", "guidance_scale") for value in ("nan", "inf")),
    ],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be"):
        SamplingConfig(**options)


def test_guidance_formula():
    caption, empty = jnp.ones((3, 2, 5)), jnp.full((3, 2, 5), 0.25)
    np.testing.assert_allclose(guide(jnp.concatenate([caption, empty], 1), 3.0), 0.25 + 3 * 0.75)


def test_guided_tokens_equal_two_full_passes(params):
    """Greedy, so that every token can be checked: each branch's state is its own at every step."""
    tokens = drawn(params, [0, 1], SamplingConfig(temperature=0.0, guidance_scale=2.5))[0]
    apply = Decoder(CONFIG).apply
    empty = TEXT.at[:, 1:].set(0)
    with_caption = apply({"params": params}, TEXT, jnp.asarray(tokens)).image
    without = apply({"params": params}, empty, jnp.asarray(tokens)).image
    np.testing.assert_array_equal(np.argmax(without + 2.5 * (with_caption - without), -1), tokens)


def test_guidance_leaves_its_inputs_alone(params):
    """All that a draw is given serves the next one: nothing is donated, nothing written into."""
    inputs = prefill(CONFIG, params, with_empty_captions(TEXT)), candidate_keys(7, jnp.arange(2)), no_prime(CONFIG, 2)
    text_kv, keys, prime = inputs
    before = jax.tree.map(np.array, (params, text_kv, jax.random.key_data(keys), prime))
    first, second = (
        np.asarray(sample_tokens(CONFIG, params, *inputs, SamplingConfig(guidance_scale=3.0))) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    jax.tree.map(np.testing.assert_array_equal, (params, text_kv, jax.random.key_data(keys), prime), before)


def test_guidance_of_one_is_the_plain_draw(params, eight):
    assert not SamplingConfig(guidance_scale=1.0).guided
    np.testing.assert_array_equal(drawn(params, range(8), SamplingConfig(guidance_scale=1.0)), eight)
    nearly = drawn(params, range(8), SamplingConfig(guidance_scale=1.0 + 1e-7))
    np.testing.assert_array_equal(nearly, eight)


def test_priming_keeps_the_given_rows(params):
    given = jax.random.randint(jax.random.key(3), (2, 16), 0, 13)
    tokens = drawn(params, range(8), prime=Prime(given, jnp.int32(8)))
    np.testing.assert_array_equal(tokens[:, :, :8], np.broadcast_to(given[:, :8], (8, 2, 8)))
    assert len({candidate[:, 8:].tobytes() for candidate in tokens}) > 1
    everything = drawn(params, [0, 1], prime=Prime(given, jnp.int32(16)))
    np.testing.assert_array_equal(everything[0], given)


def test_bfloat16_model_draws(params):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    keys = candidate_keys(0, jnp.arange(2))
    tokens = sample_tokens(config, params, prefill(config, params, TEXT), keys, no_prime(config, 2), SamplingConfig())
    assert tokens.shape == (2, 2, 16)


def test_the_former_name_still_answers():
    with pytest.warns(FutureWarning, match="sample_tokens"):
        from dalle_jax.decoder.sampling import draw
    assert draw is sample_tokens
