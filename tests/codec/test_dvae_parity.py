"""The convolutional body against the release's own code, on its random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.codec import Codec, CodecConfig, ConvConfig, encode
from dalle_jax.codec.model import decode_pixels

pytestmark = pytest.mark.parity

CODES, IMAGE_SIZE = 512, 32
CONFIG = CodecConfig(codebook_size=CODES, conv=ConvConfig(hidden_dim=64, decoder_input_dim=16))


@pytest.fixture(scope="module")
def release():
    """The release's encoder and decoder, as narrow as they can be."""
    torch = pytest.importorskip("torch")
    dall_e = pytest.importorskip("dall_e")
    torch.manual_seed(0)
    return (
        dall_e.Encoder(n_hid=64, vocab_size=CODES, use_mixed_precision=False),
        dall_e.Decoder(n_init=16, n_hid=64, vocab_size=CODES, use_mixed_precision=False),
    )


@pytest.fixture(scope="module")
def params(release):
    """Their weights, under our names."""
    encoder, decoder = release
    return {"encoder": as_tree(encoder.state_dict()), "decoder": as_tree(decoder.state_dict())}


def as_tree(state_dict):
    tree = {}
    for name, value in state_dict.items():
        *modules, leaf = name.split(".")
        node = functools.reduce(lambda parent, module: parent.setdefault(module, {}), modules, tree)
        array = value.numpy()
        node["kernel" if leaf == "w" else "bias"] = array.transpose(2, 3, 1, 0) if leaf == "w" else array
    return tree


def images():
    return np.random.default_rng(0).integers(0, 256, (2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_every_name_has_its_place(params):
    init = jax.eval_shape(Codec(CONFIG).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8))
    ours = jax.tree.map(lambda x: x.unbox().shape, init["params"], is_leaf=lambda x: hasattr(x, "unbox"))
    assert ours == jax.tree.map(lambda x: x.shape, params)


def test_tokens_and_logits(release, params):
    import torch
    from dall_e import map_pixels

    pixels = torch.from_numpy(images()).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = release[0](map_pixels(pixels)).permute(0, 2, 3, 1).numpy()
    logits = jax.jit(lambda p, x: Codec(CONFIG).apply({"params": p}, x, method="encode"))(params, images())
    assert relative(logits, expected) <= 1e-4
    tokens = jax.jit(encode, static_argnums=0)(CONFIG, params, {}, images())
    np.testing.assert_array_equal(tokens, expected.argmax(-1))
    assert len(np.unique(tokens)) > 2


def test_reconstruction(release, params):
    import torch
    from dall_e import unmap_pixels

    tokens = np.random.default_rng(1).integers(0, CODES, (2, 4, 4))
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(tokens), CODES).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        maps = release[1](one_hot)
        expected = unmap_pixels(torch.sigmoid(maps[:, :3])).permute(0, 2, 3, 1).numpy()
    ours = jax.jit(lambda p, t: Codec(CONFIG).apply({"params": p}, t, method="decode_tokens"))(params, tokens)
    assert relative(ours, maps.permute(0, 2, 3, 1).numpy()) <= 1e-4
    pixels = jax.jit(decode_pixels, static_argnums=0)(CONFIG, params, {}, tokens)
    assert relative(pixels, expected) <= 1e-4
