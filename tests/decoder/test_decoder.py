"""The decoder: the stream's layout, causality, loss weights, padding, and cached steps against the whole."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.decoder.config import AttentionForm, DecoderConfig
from dalle_jax.decoder.model import Decoder, Output, init_params
from dalle_jax.decoder.sampling import apply_decoder, make_caches, prefill, sampling_params, store
from dalle_jax.decoder.task import (
    DecoderTask,
    count_parameters,
    drop_captions,
    likelihood_loss,
    text_weights,
    training_flops,
)
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import Pattern
from dalle_jax.nn.cpu_decoding import DecodingLayout
from dalle_jax.nn.remat import Remat

CONFIG = DecoderConfig(
    num_layers=5, num_heads=2, head_dim=8, embed_dim=16, mlp_dim=32, text_vocab_size=20, text_length=6,
    codebook_size=11, grid_size=5, conv_kernel=3, remat=Remat.NONE, dtype="float32",
    patterns=(Pattern.ROW, Pattern.COLUMN, Pattern.FULL, Pattern.CONV, Pattern.ROW),
)  # fmt: skip
TEXT = jnp.array([[2, 5, 6, 0, 0, 0], [2, 7, 8, 9, 3, 4]])


class FakeCodec:
    """Tokens from the mean brightness of cells; only its sizes matter here."""

    codebook_size, grid_size, image_size = 11, 5, 20

    def encode(self, images):
        cells = images.reshape(-1, 5, 4, 5, 4, 3).astype(jnp.float32).mean((2, 4, 5))
        return jnp.int32(cells * 10 / 255).reshape(-1, 25)

    def decode(self, tokens):
        cells = (tokens.reshape(-1, 5, 5) * 25).astype(jnp.uint8)
        return jnp.repeat(jnp.repeat(cells, 4, 1), 4, 2)[..., None].repeat(3, -1)


def test_every_pattern_is_among_the_layers():
    """So that whoever adds one sees its cache compared with the full pass here."""
    assert set(CONFIG.schedule) == set(Pattern)


@pytest.fixture(scope="module")
def params():
    """Weights large enough that every path through the model moves the logits."""
    fresh = nn.unbox(jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), fresh)


@pytest.fixture(scope="module")
def image_tokens():
    return jax.random.randint(jax.random.key(1), (2, 25), 0, 11)


@pytest.fixture(scope="module")
def output(params, image_tokens):
    return jax.jit(Decoder(CONFIG).apply)({"params": params}, TEXT, image_tokens)


def test_shapes(output):
    assert output.text.shape == (2, 5, 20) and output.image.shape == (2, 25, 11)
    assert output.text.dtype == output.image.dtype == jnp.float32


def test_dense_form_gives_the_same_logits(params, image_tokens, output):
    dense = Decoder(dataclasses.replace(CONFIG, attention=AttentionForm.DENSE))
    expected = jax.jit(dense.apply)({"params": params}, TEXT, image_tokens)
    # Logits of order 4 after five layers in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), output, expected)


def test_causality_by_gradient(params):
    """The gradient of one position's logits with respect to every embedded position is zero from there on."""

    def logits(pad_and_place, kind, index):
        changed = params | pad_and_place
        out = Decoder(CONFIG).apply({"params": changed}, jnp.zeros((1, 6), jnp.int32), jnp.zeros((1, 25), jnp.int32))
        return jax.lax.dynamic_index_in_dim(getattr(out, kind)[0], index, keepdims=False).sum()

    # Text positions each have an embedding of their own; image positions too, through the row embedding.
    inputs = {"text_position": params["text_position"], "row_position": params["row_position"]}
    gradient = jax.jit(jax.grad(logits), static_argnames="kind")
    text = gradient(inputs, "text", 2)
    reached = np.abs(text["text_position"]).sum(-1) > 0
    np.testing.assert_array_equal(reached, [True] * 3 + [False] * 3)
    assert not np.abs(text["row_position"]).any()
    image = gradient(inputs, "image", 12)  # third row of the grid
    assert (np.abs(image["text_position"]).sum(-1) > 0).all()
    np.testing.assert_array_equal(np.abs(image["row_position"]).sum(-1) > 0, [True] * 3 + [False] * 2)


@pytest.mark.parametrize("index", [1, 12, 13, 24])
def test_causality_by_gradient_within_a_row(index):
    """Every image position holds a code of its own, whose embedding has the gradient of the position."""
    config = dataclasses.replace(CONFIG, codebook_size=25)
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))

    def logits(table):
        tokens = jnp.arange(25)[None]
        return (
            Decoder(config)
            .apply({"params": params | {"image_embedding": table}}, TEXT[1:], tokens)
            .image[0, index]
            .sum()
        )

    gradient = jax.jit(jax.grad(logits))(params["image_embedding"])
    np.testing.assert_array_equal(np.abs(gradient).sum(-1) > 0, [True] * index + [False] * (25 - index))


def test_image_token_is_seen_only_after_its_own_place(params, image_tokens, output):
    changed = image_tokens.at[:, 7].set((image_tokens[:, 7] + 1) % 11)
    other = jax.jit(Decoder(CONFIG).apply)({"params": params}, TEXT, changed)
    np.testing.assert_array_equal(output.image[:, :8], other.image[:, :8])
    np.testing.assert_array_equal(output.text, other.text)
    assert not np.allclose(output.image[:, 8], other.image[:, 8])


def test_last_image_token_is_never_an_input(params, image_tokens, output):
    changed = image_tokens.at[:, -1].set((image_tokens[:, -1] + 1) % 11)
    other = jax.jit(Decoder(CONFIG).apply)({"params": params}, TEXT, changed)
    jax.tree.map(np.testing.assert_array_equal, output, other)


def test_each_padding_position_has_a_token_of_its_own(params, image_tokens, output):
    for position in (3, 5):
        moved = {**params, "pad_embedding": params["pad_embedding"].at[position].add(1.0)}
        other = jax.jit(Decoder(CONFIG).apply)({"params": moved}, TEXT, image_tokens)
        assert not np.allclose(output.image[0], other.image[0])  # the first caption is padded there
        np.testing.assert_array_equal(output.image[1], other.image[1])  # the second has a word there


@pytest.mark.parametrize("form", ["scanned", "unrolled", "rows"])
def test_cached_steps_equal_the_full_forward_pass(params, image_tokens, output, form):
    config = dataclasses.replace(CONFIG, scan=form == "scanned")
    candidates = 3
    if form == "rows":
        params = sampling_params(config, params, DecodingLayout.ROWS)
        assert set(params["transformer"]) == {"tail"}

    @jax.jit
    def step(previous, position, caches):
        out = apply_decoder(config, params, previous, position, caches, method="step")
        return out.logits, store(config, caches, out.new, position)

    caches = make_caches(config, prefill(config, params, TEXT), candidates)
    previous = jnp.zeros((candidates, 2), jnp.int32)
    for position in range(25):
        logits, caches = step(previous, jnp.int32(position), caches)
        expected = np.broadcast_to(output.image[:, position], logits.shape)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4, err_msg=f"image position {position}")
        previous = jnp.broadcast_to(image_tokens[:, position], previous.shape)


def test_caches_hold_what_each_pattern_reaches(params):
    text_kv = prefill(CONFIG, params, TEXT)
    group, tail = make_caches(CONFIG, text_kv, 3)
    slots = [cache.image.k.shape[-2] for cache in (*group, *tail)]
    assert slots == [5, 25, 25, 9, 5]  # row: a width; conv 3x3 at width 5: offsets to 9
    assert all(cache.text.k.shape[-4:] == (2, 2, 6, 8) for cache in (*group, *tail))  # no candidate axis


def test_loss_weights_text_and_image():
    cross_entropy_text, cross_entropy_image = np.log(20), np.log(11)
    output = Output(jnp.zeros((2, 5, 20)), jnp.zeros((2, 25, 11)))
    batch = {"text": TEXT, "text_weights": text_weights(TEXT, False), "image_tokens": jnp.zeros((2, 25), jnp.int32)}
    loss, parts = likelihood_loss(output, batch, 0.125)
    assert float(parts["text_loss"]) == pytest.approx(cross_entropy_text, rel=1e-6)
    assert float(parts["image_loss"]) == pytest.approx(cross_entropy_image, rel=1e-6)
    assert float(loss) == pytest.approx(cross_entropy_text / 8 + cross_entropy_image * 7 / 8, rel=1e-6)


def test_loss_against_a_log_softmax(image_tokens):
    """Text position i is the target of the logits at i - 1; the image's targets are its own tokens."""
    rng = np.random.default_rng(0)
    output = Output(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 5, 20), (2, 25, 11))))
    batch = {"text": TEXT, "text_weights": text_weights(TEXT, False), "image_tokens": image_tokens}
    _, parts = likelihood_loss(output, batch, 0.125)

    def cross_entropy(logits, targets):
        logits, targets = np.asarray(logits, np.float64), np.asarray(targets)
        chosen = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return np.log(np.exp(logits).sum(-1)) - chosen

    text, counted = cross_entropy(output.text, TEXT[:, 1:]), np.asarray(TEXT[:, 1:] != 0)
    assert float(parts["text_loss"]) == pytest.approx(text[counted].mean(), rel=1e-5)
    assert float(parts["image_loss"]) == pytest.approx(cross_entropy(output.image, image_tokens).mean(), rel=1e-5)


def test_training_drops_captions(params, image_tokens):
    """At a rate of nearly 1 the loss is that of the empty caption, without a text target."""
    task = DecoderTask(dataclasses.replace(CONFIG, caption_dropout=0.9999), FakeCodec())
    batch = task.prepare({"text": TEXT, "image_tokens": image_tokens})
    options = {"key": jax.random.key(0), "step": jnp.int32(0)}
    loss, (_, metrics) = jax.jit(lambda batch: task.loss(params, {}, batch, **options))(batch)
    empty = batch | {"text": TEXT.at[:, 1:].set(0), "text_weights": jnp.zeros((2, 5))}
    expected, _ = jax.jit(lambda batch: DecoderTask(CONFIG, FakeCodec()).loss(params, {}, batch, **options))(empty)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert metrics["text_loss"] == 0 and metrics["image_loss"] > 0


def test_padding_counts_only_where_asked():
    np.testing.assert_allclose(text_weights(TEXT, False), np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]) * 2 / 7)
    np.testing.assert_allclose(text_weights(TEXT, True), np.full((2, 5), 2 / 10))
    assert not text_weights(TEXT.at[:, 1:].set(0), False).any()


def test_accumulation_over_uneven_captions_is_the_whole_batch(params, image_tokens):
    task = DecoderTask(CONFIG, FakeCodec())
    batch = task.prepare({"text": TEXT, "image_tokens": image_tokens})
    key, step = jax.random.key(0), jnp.int32(0)
    loss = jax.jit(lambda batch: task.loss(params, {}, batch, key=key, step=step)[0])
    whole = loss(batch)
    halves = [loss(jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in (0, 1)]
    assert float(whole) == pytest.approx(float(halves[0] + halves[1]) / 2, rel=1e-5)


def test_dropped_captions_keep_their_first_token_and_lose_their_targets():
    text = jnp.tile(TEXT, (500, 1))
    weights = text_weights(text, False)
    dropped_text, dropped_weights = drop_captions(text, weights, 0.25, jax.random.key(0))
    gone = np.asarray((dropped_text[:, 1:] == 0).all(1))
    assert 0.2 < gone.mean() < 0.3
    np.testing.assert_array_equal(dropped_text[:, 0], text[:, 0])
    assert not dropped_weights[gone].any()
    assert float(dropped_weights.sum()) == pytest.approx(float(weights.sum()), rel=0.05)


def test_published_size():
    config = DecoderConfig()
    assert (config.num_layers, config.num_heads, config.head_dim, config.embed_dim) == (64, 62, 64, 3968)
    assert config.mlp_dim == 4 * config.embed_dim
    assert count_parameters(config) == pytest.approx(12.3e9, rel=0.01)
    blocks = 64 * 12 * 3968**2
    assert 0.98 < blocks / count_parameters(config) < 1.0


def test_flops_formula_against_a_hand_count():
    config = dataclasses.replace(CONFIG, num_layers=1, patterns=(Pattern.FULL,))
    layer = 4 * 16 * 16 + 2 * 16 * 32
    products = layer * 31 + 16 * 20 * 5 + 16 * 11 * 25
    pairs = 31 * 32 // 2
    assert training_flops(config, 3) == 3 * (6 * products + 12 * 16 * pairs)


def test_a_codec_of_other_sizes_is_refused():
    with pytest.raises(UserError, match=r"codebook_size is 12.*codec's is 11"):
        DecoderTask(dataclasses.replace(CONFIG, codebook_size=12), FakeCodec())


def test_patterns_must_match_the_depth():
    with pytest.raises(ValueError, match="5 entries for num_layers=4"):
        dataclasses.replace(CONFIG, num_layers=4)


@pytest.mark.parametrize("name", ["caption_dropout", "dropout", "text_loss_weight"])
@pytest.mark.parametrize("share", [-0.1, 1.0, 10.0])
def test_shares_are_no_per_cents(name, share):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), not {share}"):
        DecoderConfig(**{name: share})


def test_evaluation_is_the_mean_over_all_tokens_however_they_are_cut(params):
    """Captions of other lengths in each batch, and a last batch that is filled up: one program, the same means."""
    rng, task = np.random.default_rng(0), DecoderTask(CONFIG, FakeCodec())
    text = np.where(np.arange(6) <= np.arange(5)[:, None], rng.integers(3, 20, (5, 6)), 0).astype(np.int32)
    rows = {"text": text, "image_tokens": rng.integers(0, 11, (5, 25)).astype(np.int32)}

    def batch(places, mask):
        return task.prepare({name: jnp.asarray(x[places]) for name, x in rows.items()} | {"mask": jnp.asarray(mask)})

    yes, no = True, False
    cut = [batch([0, 1], [yes, yes]), batch([4, 2], [yes, yes]), batch([3, 0], [yes, no])]
    found = task.evaluate(params, {}, cut)
    assert task._evaluate_batch._cache_size() == 1
    whole = task.prepare(jax.tree.map(jnp.asarray, rows))
    output = jax.jit(Decoder(CONFIG).apply)({"params": params}, whole["text"], whole["image_tokens"])
    loss, parts = likelihood_loss(output, whole, 0.125)
    assert found == pytest.approx({"loss": float(loss)} | {name: float(x) for name, x in parts.items()}, rel=1e-5)
