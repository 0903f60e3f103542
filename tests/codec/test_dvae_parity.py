"""The convolutional body against the release's own code, on its random weights, through the files that it writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.codec import Codec, CodecConfig, ConvConfig, load_codec, save_codec
from dalle_jax.codec.model import decode_pixels
from dalle_jax.training.trees import named_leaves

pytestmark = pytest.mark.parity

CODES, IMAGE_SIZE = 512, 32
CONFIG = CodecConfig(codebook_size=CODES, conv=ConvConfig(hidden_dim=64, decoder_input_dim=16))


def make(**sizes):
    """The release's encoder and decoder with random weights."""
    torch = pytest.importorskip("torch")
    dall_e = pytest.importorskip("dall_e")
    torch.manual_seed(0)
    first = {"n_init": sizes.pop("n_init")}
    sizes["use_mixed_precision"] = False
    return dall_e.Encoder(**sizes), dall_e.Decoder(**first, **sizes)


@pytest.fixture(scope="module")
def release():
    """As narrow as it can be."""
    return make(n_init=16, n_hid=64, vocab_size=CODES)


def write(release, folder, **options):
    """Whole modules, as the release is published."""
    import torch

    for name, module in zip(("encoder", "decoder"), release, strict=True):
        torch.save(module, folder / f"{name}.pkl", **options)
    return folder


@pytest.fixture(scope="module")
def codec(release, tmp_path_factory):
    return load_codec(write(release, tmp_path_factory.mktemp("dvae")), image_size=IMAGE_SIZE)


def images(size=IMAGE_SIZE):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def logits_of(encoder, pictures):
    import torch
    from dall_e import map_pixels

    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return encoder(map_pixels(pixels)).permute(0, 2, 3, 1).numpy()


def maps_of(decoder, tokens, codes):
    """The decoder's six maps, and pixels in [0, 1]."""
    import torch
    from dall_e import unmap_pixels

    one_hot = torch.nn.functional.one_hot(torch.from_numpy(tokens).long(), codes).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        maps = decoder(one_hot)
        return (x.permute(0, 2, 3, 1).numpy() for x in (maps, unmap_pixels(torch.sigmoid(maps[:, :3]))))


def test_tokens_and_logits(release, codec):
    assert codec.config == CONFIG
    expected = logits_of(release[0], images())
    logits = jax.jit(lambda p, x: Codec(CONFIG).apply({"params": p}, x, method="encode"))(codec.weights[0], images())
    assert relative(logits, expected) <= 1e-4
    tokens = codec.encode(images())
    np.testing.assert_array_equal(tokens, expected.argmax(-1).reshape(2, -1))
    assert len(np.unique(tokens)) > 2


def test_reconstruction(release, codec):
    tokens = np.random.default_rng(1).integers(0, CODES, (2, 4, 4), np.int32)
    maps, expected = maps_of(release[1], tokens, CODES)
    params, _ = codec.weights
    ours = jax.jit(lambda p, t: Codec(CONFIG).apply({"params": p}, t, method="decode_tokens"))(params, tokens)
    assert relative(ours, maps) <= 1e-4
    pixels = jax.jit(decode_pixels, static_argnums=0)(CONFIG, params, {}, jnp.asarray(tokens))
    assert relative(pixels, expected) <= 1e-4
    assert np.abs(codec.decode(tokens.reshape(2, -1)).astype(int) - np.rint(255 * expected)).max() <= 1


@pytest.mark.parametrize("what", ["legacy", "state dicts", "written here"])
def test_other_files_hold_the_same(release, codec, tmp_path, what):
    import torch
    from safetensors.torch import load_file

    if what == "legacy":
        write(release, tmp_path, _use_new_zipfile_serialization=False)
    elif what == "state dicts":
        write([module.state_dict() for module in release], tmp_path)
    else:
        save_codec(codec, tmp_path)
        for name, module in zip(("encoder", "decoder"), release, strict=True):
            theirs = load_file(tmp_path / f"{name}.safetensors")
            assert theirs.keys() == module.state_dict().keys()
            for key, tensor in module.state_dict().items():
                assert torch.equal(theirs[key], tensor), key
    again = load_codec(tmp_path, image_size=IMAGE_SIZE)
    assert again.config == CONFIG
    wanted = named_leaves(codec.weights[0])
    for name, array in named_leaves(again.weights[0]).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.slow
def test_the_published_sizes(tmp_path):
    """App. A.1's counts of parameters, the encoder's logits and tokens, the decoder's maps."""
    encoder, decoder = make(n_init=128)
    codec = load_codec(write((encoder, decoder), tmp_path))
    assert codec.config == CodecConfig() and codec.image_size == 256
    counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in codec.weights[0].items()}
    assert counts == {"encoder": 53_786_240, "decoder": 43_829_766}
    small = load_codec(tmp_path, image_size=64)
    expected = logits_of(encoder, images(64))
    tokens = np.asarray(small.encode(images(64)))
    np.testing.assert_array_equal(tokens, expected.argmax(-1).reshape(2, -1))
    logits = jax.jit(lambda p, x: Codec(small.config).apply({"params": p}, x, method="encode"))
    assert relative(logits(small.weights[0], images(64)), expected) <= 1e-4
    maps, _ = maps_of(decoder, tokens.reshape(2, 8, 8), 8192)
    ours = jax.jit(lambda p, t: Codec(small.config).apply({"params": p}, t, method="decode_tokens"))
    assert relative(ours(small.weights[0], tokens.reshape(2, 8, 8)), maps) <= 1e-4
