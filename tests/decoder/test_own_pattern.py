"""An attention pattern of one's own: a class and an entry in a table, and the decoder trains and samples with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.config import from_config_dict, to_config_dict
from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.decoder.model import Decoder, init_params
from dalle_jax.decoder.sampling import make_caches, store
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import PATTERNS, AttentionPattern, Band, dense_attention, pattern_mask, structured_attention
from dalle_jax.nn.remat import Remat


class Dilated(Band):
    """Every second position of the last two rows: a band."""

    def offsets(self, grid):
        return tuple(range(0, 2 * grid.width + 1, 2))


class Quadrants(AttentionPattern):
    """What came before in the own quarter of the image: no band, and no form but its mask."""

    def mask(self, grid):
        row, column = np.divmod(np.arange(grid.length), grid.width)
        quarter = 2 * (2 * row // grid.height) + 2 * column // grid.width
        return np.tril(quarter[:, None] == quarter[None, :])


@pytest.fixture(params=[Dilated, Quadrants], ids=["band", "mask"])
def pattern(request, monkeypatch) -> str:
    monkeypatch.setitem(PATTERNS, "own", request.param())
    return "own"


@pytest.fixture
def config(pattern) -> DecoderConfig:
    return DecoderConfig(
        num_layers=3, num_heads=2, head_dim=4, embed_dim=8, mlp_dim=16, text_vocab_size=20, text_length=3,
        codebook_size=11, grid_size=4, patterns=(pattern, "row", pattern), remat=Remat.NONE, dtype="float32",
    )  # fmt: skip


def test_its_structured_form_equals_its_mask(pattern):
    sizes = {"text_length": 3, "height": 4, "width": 6, "kernel": 3}
    mask = pattern_mask(pattern, **sizes)
    assert not np.triu(mask, 1).any() and mask.diagonal().all()
    qkv = tuple(jax.random.normal(jax.random.key(0), (3, 2, len(mask), 2, 8)))

    def results(attend):
        return jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), argnums=(0, 1, 2))(*qkv)

    plain = results(lambda q, k, v: dense_attention(q, k, v, jnp.asarray(mask)))
    fast = results(lambda q, k, v: structured_attention(pattern, q, k, v, **sizes))
    # Sums of at most 27 float32 products of order 1, in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), fast, plain)


def test_a_config_names_it_and_its_cache_gives_the_logits_of_the_full_pass(config):
    assert from_config_dict(DecoderConfig, to_config_dict(config)) == config
    model, params = Decoder(config), jax.tree.map(jnp.asarray, init_params(config, jax.random.key(0)))
    text = jnp.asarray([[1, 7, 0], [1, 2, 3]])
    tokens = jax.random.randint(jax.random.key(1), (2, config.image_length), 0, config.codebook_size)
    full = model.apply({"params": params}, text, tokens).image
    caches = make_caches(config, model.apply({"params": params}, text, method="prefill"), candidates=1)

    @jax.jit
    def step(previous, position, caches):
        out = model.apply({"params": params}, previous, position, caches, method="step")
        return out.logits[0], store(config, caches, out.new, position)

    for position in range(config.image_length):
        logits, caches = step(tokens[None, :, max(position - 1, 0)], jnp.int32(position), caches)
        # Float32 sums in another order through three layers.
        np.testing.assert_allclose(logits, full[:, position], rtol=2e-4, atol=2e-5)


def test_names_and_grids_that_do_not_go_together_are_refused_with_the_config(config):
    plain = to_config_dict(dataclasses.replace(config, patterns=()))
    with plain.unlocked():
        plain.patterns = ("own", "rwo", "row")
    with pytest.raises(
        UserError, match="config.decoder.model: unknown attention pattern 'rwo', did you mean 'row'.*own"
    ):
        from_config_dict(DecoderConfig, plain, "config.decoder.model")
    with pytest.raises(ValueError, match="odd kernel of 3 or more, not 4"):
        dataclasses.replace(config, patterns=(), conv_kernel=4)
