"""The same numbers as OpenAI's, open_clip's and transformers' CLIP, on random weights of theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import ClipConfig, ClipModel, TextConfig, VisionConfig, tower_config
from clip_jax.losses.base import normalize
from clip_jax.losses.softmax import contrastive_loss
from clip_jax.model import abstract_params
from clip_jax.preprocessing.images import preprocess
from clip_jax.towers.vit import normalize_pixels
from dalle_jax.training.trees import named_leaves
from tests.clip.same_numbers import relative_difference

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("torchvision")]
torch = pytest.importorskip("torch")


LAYERS, EMBED, END = 2, 64, 49407
CONFIG = ClipConfig(
    EMBED,
    VisionConfig(64, 16, tower_config(LAYERS, 128)),
    TextConfig(END + 1, 77, END, tower_config(LAYERS, 128)),
)


def from_openai(state):
    """Our parameters from OpenAI's names, as arrays: linear weights turned, layers stacked, q, k and v side by side."""
    state = {name: np.asarray(value, np.float32) for name, value in state.items()}

    def linear(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def block(prefix):
        width = state[f"{prefix}.attn.in_proj_weight"].shape[1]
        attention = {
            "qkv_kernel": state[f"{prefix}.attn.in_proj_weight"].T.reshape(width, 3, width),
            "qkv_bias": state[f"{prefix}.attn.in_proj_bias"].reshape(3, width),
            "out": linear(f"{prefix}.attn.out_proj"),
        }
        mlp = {"in": linear(f"{prefix}.mlp.c_fc"), "out": linear(f"{prefix}.mlp.c_proj")}
        return {
            "attention": attention,
            "mlp": mlp,
            "norm_1": norm(f"{prefix}.ln_1"),
            "norm_2": norm(f"{prefix}.ln_2"),
        }

    def stack(prefix):
        blocks = [block(f"{prefix}.resblocks.{i}") for i in range(LAYERS)]
        return {"group": {"layer_0": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}}

    patch = state["visual.conv1.weight"]  # [width, 3, row, column]
    return {
        "logit_scale": state["logit_scale"],
        "vision_projection": {"kernel": state["visual.proj"]},
        "text_projection": {"kernel": state["text_projection"]},
        "vision": {
            "patch_embedding": {"kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch))},
            "class_embedding": state["visual.class_embedding"],
            "position_embedding": state["visual.positional_embedding"],
            "norm_pre": norm("visual.ln_pre"),
            "transformer": stack("visual.transformer"),
            "norm_post": norm("visual.ln_post"),
        },
        "text": {
            "token_embedding": {"embedding": state["token_embedding.weight"]},
            "position_embedding": state["positional_embedding"],
            "transformer": stack("transformer"),
            "norm_final": norm("ln_final"),
        },
    }


def from_transformers(state):
    """OpenAI's names from those of `CLIPModel`."""
    renamed = {
        "logit_scale": state["logit_scale"],
        "visual.proj": state["visual_projection.weight"].T,
        "text_projection": state["text_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
    }
    layers = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    layers |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    towers = (("vision_model", "visual."), ("text_model", ""))
    norms = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final"}
    for theirs, ours in towers:
        for kind in ("weight", "bias"):
            for old, new in norms.items():
                if f"{theirs}.{old}.{kind}" in state:
                    renamed[f"{ours}{new}.{kind}"] = state[f"{theirs}.{old}.{kind}"]
            for i in range(LAYERS):
                old, new = f"{theirs}.encoder.layers.{i}", f"{ours}transformer.resblocks.{i}"
                qkv = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                renamed[f"{new}.attn.in_proj_{kind}"] = np.concatenate(qkv)
                renamed |= {f"{new}.{b}.{kind}": state[f"{old}.{a}.{kind}"] for a, b in layers.items()}
    return renamed


def numpy_state(model):
    return {name: value.detach().float().numpy() for name, value in model.state_dict().items()}


def openai():
    clip = pytest.importorskip("clip.model")
    vision, text = CONFIG.vision, CONFIG.text
    model = clip.CLIP(
        EMBED, vision.image_size, LAYERS, 128, vision.patch_size, text.context_length, text.vocab_size, 128, 2, LAYERS
    )
    return from_openai(numpy_state(model)), model.encode_image, model.encode_text


def open_clip():
    package = pytest.importorskip("open_clip")
    model = package.CLIP(
        EMBED,
        package.CLIPVisionCfg(layers=LAYERS, width=128, head_width=64, patch_size=16, image_size=64),
        package.CLIPTextCfg(context_length=77, vocab_size=END + 1, width=128, heads=2, layers=LAYERS),
        quick_gelu=True,
    ).eval()
    return from_openai(numpy_state(model)), model.encode_image, model.encode_text


def transformers():
    package = pytest.importorskip("transformers")
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    text = {"vocab_size": END + 1, "max_position_embeddings": 77, "eos_token_id": END, "bos_token_id": END - 1}
    config = package.CLIPConfig(
        vision_config=sizes | {"image_size": 64, "patch_size": 16}, text_config=sizes | text, projection_dim=EMBED
    )
    model = package.CLIPModel(config).eval()

    def features(result):
        return getattr(result, "pooler_output", result)

    return (
        from_openai(from_transformers(numpy_state(model))),
        lambda pixels: features(model.get_image_features(pixels)),
        lambda ids: features(model.get_text_features(ids)),
    )


@pytest.mark.parametrize("peer", [openai, open_clip, transformers])
def test_features_and_logits(peer):
    torch.manual_seed(0)
    params, encode_image, encode_text = peer()
    assert named_leaves(params).keys() == named_leaves(abstract_params(CONFIG)).keys()
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 64, 64, 3)).astype(np.float32)
    ids = np.zeros((3, 77), np.int64)
    for row, end in zip(ids, (1, 20, 76), strict=True):
        row[:end], row[end] = rng.integers(1, END - 1, end), END
    with torch.no_grad():
        image = encode_image(torch.tensor(pixels.transpose(0, 3, 1, 2))).numpy()
        text = encode_text(torch.tensor(ids)).numpy()
    output = jax.jit(ClipModel(CONFIG).apply)({"params": params}, jnp.asarray(pixels), jnp.asarray(ids, jnp.int32))
    assert relative_difference(output.image, image) < 1e-4
    assert relative_difference(output.text, text) < 1e-4
    unit_image, unit_text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    logits = np.exp(params["logit_scale"]) * unit_image @ unit_text.T
    assert relative_difference(output.logit_scale * normalize(output.image) @ normalize(output.text).T, logits) < 1e-4


def test_loss_is_open_clips():
    package = pytest.importorskip("open_clip")
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 32, EMBED)).astype(np.float32)
    tensors = [torch.tensor(x, requires_grad=True) for x in (image, text)]
    units = [torch.nn.functional.normalize(x, dim=-1) for x in tensors]
    expected = package.ClipLoss()(*units, torch.tensor(30.0))
    expected.backward()
    value_and_grad = jax.value_and_grad(lambda i, t: contrastive_loss(i, t, jnp.float32(30.0)).loss, argnums=(0, 1))
    loss, gradients = value_and_grad(jnp.asarray(image), jnp.asarray(text))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, tensors, strict=True):
        assert relative_difference(ours, theirs.grad.numpy()) < 1e-4


def test_preprocessing_is_openais():
    package = pytest.importorskip("clip")
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    transform = package.clip._transform(64)
    for height, width in ((64, 64), (97, 130), (200, 71), (40, 33)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        theirs = transform(image_module.fromarray(image)).numpy().transpose(1, 2, 0)
        ours = normalize_pixels(jnp.asarray(preprocess([image], 64)), CONFIG.vision)[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
