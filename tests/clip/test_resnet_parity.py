"""ResNets of OpenAI's package and of open_clip, on random weights and statistics of theirs: the same numbers here."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import ClipModel
from clip_jax.towers.vit import normalize_pixels
from clip_jax.weights.openai import openai_names
from clip_jax.weights.opening import open_published
from dalle_jax.weights import write_tensors
from tests.clip.same_numbers import pictures, relative_difference, same_numbers

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("torchvision")]
torch = pytest.importorskip("torch")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a ResNet and a text transformer."""

    image_size: int
    layers: tuple[int, int, int, int]
    width: int
    text: tuple[int, int]  # layers, width
    embed_dim: int


TINY = Sizes(64, (1, 3, 2, 1), 8, (1, 64), 32)
PUBLISHED = {
    "RN50": Sizes(224, (3, 4, 6, 3), 64, (12, 512), 1024),
    "RN101, 1 or 2 blocks a stage": Sizes(224, (1, 1, 2, 1), 64, (1, 512), 512),
    "RN50x4, 1 or 2 blocks a stage": Sizes(288, (1, 2, 2, 1), 80, (1, 640), 640),
    "RN50x16, 1 or 2 blocks a stage": Sizes(384, (1, 1, 2, 1), 96, (1, 768), 768),
    "RN50x64, 1 block a stage": Sizes(448, (1, 1, 1, 1), 128, (1, 1024), 1024),
}


def openai(sizes):
    model = pytest.importorskip("clip.model")
    torch.manual_seed(0)
    layers, width = sizes.text
    vision = (sizes.embed_dim, sizes.image_size, sizes.layers, sizes.width, None)
    return randomise(model.CLIP(*vision, 77, 49408, width, width // 64, layers)), {}


def open_clip(sizes):
    package = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    layers, width = sizes.text
    vision = {"layers": list(sizes.layers), "width": sizes.width, "patch_size": None, "image_size": sizes.image_size}
    text = {"width": width, "heads": width // 64, "layers": layers}
    settings = {"embed_dim": sizes.embed_dim, "vision_cfg": vision, "text_cfg": text}
    return randomise(package.CLIP(**settings)), settings


def randomise(model):
    """As after training: statistics away from 0 and 1, no gain of zero, or half of the tower would not count."""
    with torch.no_grad():
        for module in model.visual.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1)
                module.bias.normal_(0, 0.1)
    return model.eval()


def compared(model, settings, path):
    """Their bare file has the same numbers here; the sizes follow from its shapes."""
    torch.save(model.state_dict(), path)
    clip = clip_jax.load(path, activation="gelu" if settings else "quick_gelu")
    same_numbers(clip, model.encode_image, model.encode_text, model.logit_scale)
    return clip


@pytest.mark.parametrize("peer", [openai, open_clip])
def test_bare_files(tmp_path, peer):
    compared(*peer(TINY), tmp_path / "a.pt")


def test_openais_archive_in_half_precision(tmp_path):
    model, _ = openai(TINY)
    ids = torch.tensor(clip_jax.tokenizers.published.load_tokenizer()(["a cat"])).long()
    traced = torch.jit.trace(model, (torch.zeros(1, 3, 64, 64), ids))
    for parameter in traced.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    torch.jit.save(traced, tmp_path / "archive.pt")
    for parameter in model.parameters():  # which the program shares
        parameter.data = parameter.data.float()
    same_numbers(clip_jax.load(tmp_path / "archive.pt"), model.encode_image, model.encode_text, model.logit_scale)


def test_open_clips_folder_and_back(tmp_path):
    package = pytest.importorskip("open_clip")
    model, settings = open_clip(TINY)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    clip = clip_jax.load(tmp_path)
    same_numbers(clip, model.encode_image, model.encode_text, model.logit_scale)
    clip_jax.save(clip, tmp_path / "out", format="open_clip")
    theirs = package.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    same_numbers(clip, theirs.encode_image, theirs.encode_text, theirs.logit_scale)
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(theirs.state_dict()[name].numpy(), tensor.numpy(), err_msg=name)


def test_a_step_of_training_moves_the_statistics_as_theirs(tmp_path):
    """Features by the batch's own statistics, and what is stored after two batches."""
    model, _ = openai(TINY)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    published = open_published(tmp_path / "a.pt")
    variables = published.read()
    tower = ClipModel(published.config)
    step = jax.jit(lambda v, x: tower.apply(v, x, method="encode_image", mutable=["batch_stats"]))
    model.train()
    for seed in range(2):
        images = np.random.default_rng(seed).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
        pixels = normalize_pixels(jnp.asarray(images), published.config.vision)
        with torch.no_grad():
            theirs = model.encode_image(torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2)))
        # Only the image tower ran: its statistics are all that there are.
        ours, updated = step(variables, pixels)
        assert relative_difference(np.asarray(ours), theirs) < 1e-4
        variables = {**variables, **updated}
    found = write_tensors(openai_names(published.config), variables)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("peer", [openai, open_clip])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(tmp_path, name, peer):
    clip = compared(*peer(PUBLISHED[name]), tmp_path / "a.pt")
    if name == "RN50":
        params = jax.tree.leaves(clip.variables["params"])
        assert sum(x.size for x in params) == 102_007_137
        assert clip.probe_features(pictures(224)).shape == (2, 2048)
