"""big_vision's checkpoints: features equal those of Flax's own modules, put together as big_vision does it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import Loss
from clip_jax.towers.vit import normalize_pixels
from clip_jax.weights.opening import open_published
from dalle_jax.errors import UserError
from dalle_jax.training.trees import named_leaves

WIDTH, HEADS, MLP, SIZE, PATCH, VOCAB, LENGTH = 64, 4, 40, 32, 16, 100, 12


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS)(y, y)
        return x + MlpBlock()(nn.LayerNorm()(x)), None


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.gelu(nn.Dense(MLP)(x))
        return nn.Dense(x.shape[-1])(hidden)


class Encoder(nn.Module):
    stacked: bool

    @nn.compact
    def __call__(self, x):
        if self.stacked:
            scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            x, _ = scanned(name="encoderblock")(x, None)
        else:
            for i in range(2):
                x, _ = Block(name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class MAPHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = self.param("probe", nn.initializers.normal(), (1, 1, WIDTH))
        x = nn.MultiHeadDotProductAttention(HEADS)(jnp.tile(probe, [len(x), 1, 1]), x)
        return (x + MlpBlock()(nn.LayerNorm()(x)))[:, 0]


class Image(nn.Module):
    stacked: bool

    @nn.compact
    def __call__(self, pixels):
        x = nn.Conv(WIDTH, (PATCH, PATCH), (PATCH, PATCH), "VALID", name="embedding")(pixels)
        x = x.reshape(len(x), -1, WIDTH)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, x.shape[1], WIDTH))
        return MAPHead()(Encoder(self.stacked, name="Transformer")(x))


class Text(nn.Module):
    stacked: bool

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, WIDTH)(ids) + self.param("pos_embedding", nn.initializers.normal(), (1, LENGTH, WIDTH))
        return nn.Dense(WIDTH, name="head")(Encoder(self.stacked)(x)[:, -1])


class TwoTowers(nn.Module):
    stacked: bool

    @nn.compact
    def __call__(self, pixels, ids):
        self.param("t", nn.initializers.ones, (1,))
        self.param("b", nn.initializers.ones, (1,))
        return Image(self.stacked, name="img")(pixels), Text(self.stacked, name="txt")(ids)


IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(2, VOCAB, (2, LENGTH)).astype(np.int32)
IDS[:, 7:] = 1


def write(path, params, root="params/"):
    np.savez(path, **{root + name.replace(".", "/"): np.asarray(leaf) for name, leaf in named_leaves(params).items()})


def made(stacked):
    model = TwoTowers(stacked)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(IMAGES.shape), IDS)["params"]
    rng = np.random.default_rng(2)
    return model, jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("root", ["params/", "opt/target/", ""])
@pytest.mark.parametrize("stacked", [False, True], ids=["blocks", "stack"])
def test_features(tmp_path, stacked, root):
    model, params = made(stacked)
    write(tmp_path / "siglip.npz", params, root)
    clip = clip_jax.load(tmp_path / "siglip.npz", tokenize=lambda texts: IDS[: len(texts)])
    assert clip.config.loss == Loss.SIGMOID and clip.config.vision.image_size == SIZE
    pixels = normalize_pixels(jnp.asarray(IMAGES), clip.config.vision)
    image, text = jax.jit(model.apply)({"params": params}, pixels, IDS)
    np.testing.assert_allclose(clip.encode_image(IMAGES), image, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(clip.encode_text(["a", "b"]), text, rtol=2e-4, atol=2e-5)
    assert clip.logit_scale == pytest.approx(np.exp(params["t"][0])) and clip.logit_bias == params["b"][0]


def test_captions_need_its_tokenizer(tmp_path):
    write(tmp_path / "siglip.npz", made(False)[1])
    with pytest.raises(UserError, match="no tokenizer for it: give one"):
        clip_jax.load(tmp_path / "siglip.npz").encode_text(["a cat"])


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda tree: tree["img"].pop("MAPHead_0"), "no 'img/MAPHead_0/probe': its towers are not SigLIP's"),
        (lambda tree: tree["txt"].pop("Embed_0"), "no 'txt/Embed_0/embedding': its towers are not SigLIP's"),
        (lambda tree: tree["img"].pop("Transformer"), "no 'img/Transformer/encoderblock_0'"),
        (lambda tree: tree["txt"].update(cls=np.zeros((1, 1, WIDTH))), "unknown: txt/cls"),
        (lambda tree: tree["img"].update(pos_embedding=np.zeros((1, 3, WIDTH))), "pos_embedding is .1, 3, 64."),
        (lambda tree: tree.pop("t"), "missing: t"),
    ],
)
def test_other_models(tmp_path, change, told):
    tree = jax.tree.map(np.asarray, made(False)[1])
    change(tree)
    write(tmp_path / "other.npz", tree)
    with pytest.raises(UserError, match=told):
        open_published(tmp_path / "other.npz")


def test_a_head_of_the_image_tower_is_not_built(tmp_path):
    tree = jax.tree.map(np.asarray, made(False)[1])
    tree["img"]["head"] = {"kernel": np.zeros((WIDTH, WIDTH)), "bias": np.zeros(WIDTH)}
    write(tmp_path / "other.npz", tree)
    with pytest.raises(UserError, match="unknown: img/head"):
        open_published(tmp_path / "other.npz")
