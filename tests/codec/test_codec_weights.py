"""Published codecs in and out without PyTorch: OpenAI's discrete VAE and VQGAN, as the decoder's codec too."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.codec import (
    Body,
    CodecConfig,
    ConvConfig,
    FrozenCodec,
    PatchConfig,
    Relaxation,
    Vqgan,
    VqganConfig,
    load_codec,
    save_codec,
)
from dalle_jax.codec.vqgan import abstract_params
from dalle_jax.codec.weights.dvae import dvae_names, dvae_shapes
from dalle_jax.codec.weights.vqgan import vqgan_names
from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.decoder.task import DecoderTask
from dalle_jax.errors import UserError
from dalle_jax.training.trees import named_leaves, unbox
from dalle_jax.weights import write_tensors
from tests.weights import pickled

DVAE = CodecConfig(
    codebook_size=24, conv=ConvConfig(hidden_dim=8, decoder_input_dim=6, num_groups=3, blocks_per_group=1)
)
VQGAN = VqganConfig(20, 32, (1, 2), 1, (1,), 12, 10)


def random_like(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def dvae():
    return random_like(dvae_shapes(DVAE))


@pytest.fixture(scope="module")
def vqgan():
    return random_like(unbox(abstract_params(VQGAN)))


def same(found, wanted):
    found, wanted = named_leaves(found), named_leaves(wanted)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def module(tensors, name="dall_e.encoder.Encoder"):
    """A pickled `nn.Module`: parameters and modules in dictionaries of its state, and more that is not a weight."""
    own = {key: tensor for key, tensor in tensors.items() if "." not in key}
    inner = {}
    for key, tensor in tensors.items():
        if "." in key:
            head, rest = key.split(".", 1)
            inner.setdefault(head, {})[rest] = tensor
    state = {
        "training": False,
        "_parameters": {key: pickled.call("torch._utils._rebuild_parameter", x, False, {}) for key, x in own.items()},
        "_buffers": {},
        "_modules": {head: module(part, "dall_e.utils.Part") for head, part in inner.items()} | {"relu": None},
        "device": pickled.call("torch.device", "cpu"),
        "_forward_hooks": pickled.call("collections.OrderedDict"),
    }
    return pickled.instance(name, state)


def write_dvae(folder, params, change=lambda name, array: array):
    for part in ("encoder", "decoder"):
        tensors = {
            name.removeprefix(f"{part}."): np.asarray(change(name, array))
            for name, array in write_tensors(dvae_names(dvae_shapes(DVAE)), params).items()
            if name.startswith(f"{part}.")
        }
        pickled.state_dict(folder / f"{part}.pkl", tensors, wrap=module)
    return folder


def test_openais_pickled_modules(dvae, tmp_path):
    codec = load_codec(write_dvae(tmp_path, dvae), image_size=16)
    assert codec.config == DVAE and (codec.image_size, codec.grid_size, codec.codebook_size) == (16, 4, 24)
    same(codec.weights[0], dvae)
    assert load_codec(tmp_path).image_size == 256
    with pytest.raises(UserError, match="image_size 18 is not a multiple of the codec's 4: try 20"):
        load_codec(tmp_path, image_size=18)


def test_names_are_the_published_ones():
    shapes = dvae_shapes(CodecConfig())
    tensors = {piece.name: piece.shape for piece in dvae_names(shapes).pieces}
    assert tensors["encoder.blocks.group_2.block_1.id_path.w"] == (512, 256, 1, 1)
    assert tensors["decoder.blocks.group_4.block_2.res_path.conv_4.w"] == (256, 64, 3, 3)
    assert tensors["decoder.blocks.input.w"] == (128, 8192, 1, 1)
    assert len([name for name in tensors if name.startswith("encoder.")]) == 74 and len(tensors) == 74 + 76
    shapes = unbox(abstract_params(VqganConfig()))
    tensors = {piece.name: piece.shape for piece in vqgan_names(shapes).pieces}
    assert tensors["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert tensors["encoder.down.4.attn.1.proj_out.weight"] == (512, 512, 1, 1)
    assert tensors["decoder.up.4.attn.2.norm.weight"] == (512,)
    assert tensors["decoder.up.1.upsample.conv.weight"] == (128, 128, 3, 3)
    assert tensors["encoder.mid.block_1.norm1.weight"] == (512,)
    assert tensors["quantize.embedding.weight"] == (16384, 256)
    sizes = {part: sum(x.size for x in jax.tree.leaves(shapes[part])) for part in ("encoder", "decoder")}
    assert sizes == {"encoder": 29_298_176, "decoder": 42_449_795}


@pytest.mark.parametrize("kind", ["dvae", "vqgan"])
def test_out_and_in_again_is_bitwise_the_same(dvae, vqgan, tmp_path, kind):
    config, params = (DVAE, dvae) if kind == "dvae" else (VQGAN, vqgan)
    save_codec(FrozenCodec(config, params, {}, 16), tmp_path / "out")
    again = load_codec(tmp_path / "out")
    assert again.config == config and again.image_size == 16
    assert load_codec(tmp_path / "out", image_size=32).image_size == 32
    with pytest.raises(UserError, match="gs://bucket/x: weights are written to local folders alone"):
        save_codec(again, "gs://bucket/x")
    same(again.weights[0], params)
    save_codec(again, tmp_path / "more")
    for file in (tmp_path / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "more" / file.name).read_bytes()


def test_codecs_without_published_names_are_refused(tmp_path):
    for config in (
        CodecConfig(body=Body.PATCH, patch=PatchConfig()),
        CodecConfig(relaxation=Relaxation.VQ),
    ):
        with pytest.raises(UserError, match="'conv' and relaxation 'gumbel' alone"):
            save_codec(FrozenCodec(config, {}, {}, 64), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_damaged_dvae_lists_what_is_wrong(dvae, tmp_path):
    def change(name, array):
        return array[:, :1] if name == "decoder.blocks.group_2.block_1.res_path.conv_2.w" else array

    with pytest.raises(UserError, match=r"decoder\.blocks\.group_2\.block_1\.res_path\.conv_2\.w is \(4, 1, 3, 3\)"):
        load_codec(write_dvae(tmp_path, dvae, change))
    pickled.archive(tmp_path / "encoder.pkl", {"x": pickled.call("os.system", "touch proof")})
    with pytest.raises(UserError, match=r"encoder\.pkl is refused: it asks to call os\.system"):
        load_codec(tmp_path)
    pickled.state_dict(tmp_path / "encoder.pkl", {"other": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="no discrete VAE of OpenAI's: 'encoder.blocks.input.w' is missing"):
        load_codec(tmp_path)


def lightning(tensors):
    """A checkpoint of Lightning's: the state dict, with what only training needed, among objects of its classes."""
    callbacks = {pickled.named("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"): {"monitor": "val/loss"}}
    settings = pickled.instance("omegaconf.dictconfig.DictConfig", {"_content": {"embed_dim": 10}})
    return {"epoch": 3, "state_dict": tensors, "callbacks": callbacks, "hyper_parameters": settings}


def test_vqgan_from_lightnings_file(vqgan, tmp_path):
    tensors = write_tensors(vqgan_names(unbox(abstract_params(VQGAN))), vqgan)
    extra = {"loss.discriminator.main.0.weight": np.ones((2, 3, 4, 4), np.float32), "loss.logvar": np.float32([0.0])}
    path = pickled.state_dict(tmp_path / "last.ckpt", tensors | extra, wrap=lightning)
    for place in (path, tmp_path):
        codec = load_codec(place, image_size=8)
        assert codec.config == VQGAN and (codec.grid_size, codec.codebook_size) == (4, 20)
        same(codec.weights[0], vqgan)
    del tensors["decoder.up.1.block.1.conv2.bias"]
    pickled.state_dict(path, tensors | {"quantize.more": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"missing: decoder\.up\.1\.block\.1\.conv2\.bias; unknown: quantize\.more"):
        load_codec(path)
    pickled.state_dict(path, {"weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(UserError, match=r"holds no VQGAN: 'encoder\.conv_in\.weight' is missing"):
        load_codec(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is this a work directory"):
        load_codec(tmp_path / "empty")


@pytest.mark.parametrize("kind", ["dvae", "vqgan"])
def test_a_decoder_stands_on_it(dvae, vqgan, tmp_path, kind):
    config, params = (DVAE, dvae) if kind == "dvae" else (VQGAN, vqgan)
    save_codec(FrozenCodec(config, params, {}, 16), tmp_path)
    codec = load_codec(tmp_path, image_size=8)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    tokens = np.asarray(codec.encode(images))
    side = codec.grid_size
    assert tokens.shape == (3, side**2) and len(np.unique(tokens)) > 1
    pictures = codec.decode(tokens)
    assert pictures.shape == (3, 8, 8, 3) and pictures.dtype == jnp.uint8
    sizes = DecoderConfig(
        text_vocab_size=10, text_length=4, codebook_size=config.codebook_size, grid_size=side, num_layers=1,
        embed_dim=8, num_heads=1, head_dim=8, mlp_dim=8,
    )  # fmt: skip
    batch = DecoderTask(sizes, codec).prepare({"image": jnp.asarray(images), "text": jnp.ones((3, 4), jnp.int32)})
    np.testing.assert_array_equal(batch["image_tokens"], tokens)
    with pytest.raises(UserError, match="codebook_size"):
        DecoderTask(dataclasses.replace(sizes, codebook_size=7), codec)


def test_vqgan_is_the_original_in_float32(shared_data, tmp_path):
    """Vectors, codes and reconstruction of the original on random weights of a small one."""
    file = shared_data / "vqgan_parity.npz"
    if not file.is_file():
        pytest.skip(f"no numbers of the original at {file}")
    recorded = np.load(file)
    tensors = {name.removeprefix("weights/"): recorded[name] for name in recorded.files if name.startswith("weights/")}
    codec = load_codec(pickled.state_dict(tmp_path / "vqgan.ckpt", tensors, wrap=lightning), image_size=32)
    assert codec.config == VqganConfig(64, 32, (1, 2), 1, (1,), 32, 32)

    def close(ours, theirs):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()

    def run(method, x):
        return jax.jit(lambda p, x: Vqgan(codec.config).apply({"params": p}, x, method=method))(codec.weights[0], x)

    pixels = recorded["input"].transpose(0, 2, 3, 1)
    vectors = run("vectors", pixels)
    close(np.asarray(vectors).transpose(0, 3, 1, 2), recorded["pre_quantised"])
    codes = run("encode", pixels)
    np.testing.assert_array_equal(codes.reshape(2, -1), recorded["codes"])
    pictures = np.asarray(run("decode", codes)).transpose(0, 3, 1, 2)
    close(np.clip(pictures, -1, 1), np.clip(recorded["reconstruction"], -1, 1))
    # And as images of bytes.
    images = np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)
    tokens = codec.encode(images)
    np.testing.assert_array_equal(tokens, run("encode", images.astype(np.float32) / 127.5 - 1).reshape(2, -1))
    expected = np.rint((np.clip(recorded["reconstruction"], -1, 1).transpose(0, 2, 3, 1) + 1) * 127.5)
    decoded = np.asarray(codec.decode(recorded["codes"].astype(np.int32))).astype(int)
    assert np.abs(decoded - expected).max() <= 1
