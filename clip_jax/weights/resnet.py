"""OpenAI's names of a modified ResNet's parameters and statistics, and what a bare file of them says of its sizes."""

from collections.abc import Callable, Iterable

from clip_jax.config import RESNET_STRIDE, VisionConfig, resnet_config
from clip_jax.towers.resnet import EXPANSION
from dalle_jax.weights import Names

_BLOCK = "visual.layer1.0.conv1.weight"
"""There is a ResNet where this is; it tells the width."""


def resnet_names(names: Names, config: VisionConfig) -> None:
    """Adds the tensors of the image tower, up to the projection that ends its attention pool."""
    resnet = config.resnet
    assert resnet is not None
    ours, theirs, width = "vision", "visual", resnet.width
    for i, (features_in, features) in enumerate(((3, width // 2), (width // 2, width // 2), (width // 2, width)), 1):
        _conv(names, f"{ours}/conv{i}", f"{theirs}.conv{i}", (features_in, features, 3))
        _batch_norm(names, f"{ours}/bn{i}", f"{theirs}.bn{i}", features)
    features_in = width
    for i, blocks in enumerate(resnet.layers):
        planes, stage = 2**i * width, f"layer{i + 1}"
        features = EXPANSION * planes
        first = f"{ours}/{stage}/first"
        _block(names, first, f"{theirs}.{stage}.0", features_in, planes, ())
        _conv(names, f"{first}/downsample_conv", f"{theirs}.{stage}.0.downsample.0", (features_in, features, 1))
        _batch_norm(names, f"{first}/downsample_bn", f"{theirs}.{stage}.0.downsample.1", features)
        for j in range(1, blocks):
            _block(names, f"{ours}/{stage}/rest", f"{theirs}.{stage}.{j}", features, planes, (j - 1,))
        features_in = features
    ours, theirs = f"params/{ours}/attnpool", f"{theirs}.attnpool"
    positions = (config.num_patches + 1, resnet.embed_dim)
    names.array(f"{ours}/position_embedding", f"{theirs}.positional_embedding", positions)
    for part in "qkv":
        names.linear(f"{ours}/{part}", f"{theirs}.{part}_proj", (resnet.embed_dim, resnet.embed_dim))


def _block(names: Names, ours: str, theirs: str, features_in: int, planes: int, at: tuple[int, ...]) -> None:
    features = EXPANSION * planes
    for i, sizes in enumerate(((features_in, planes, 1), (planes, planes, 3), (planes, features, 1)), start=1):
        _conv(names, f"{ours}/conv{i}", f"{theirs}.conv{i}", sizes, at)
        _batch_norm(names, f"{ours}/bn{i}", f"{theirs}.bn{i}", sizes[1], at)


def _conv(names: Names, ours: str, theirs: str, sizes: tuple[int, int, int], at: tuple[int, ...] = ()) -> None:
    features_in, features, side = sizes
    shape = (features, features_in, side, side)
    names.array(f"params/{ours}/kernel", f"{theirs}.weight", shape, (2, 3, 1, 0), at)


def _batch_norm(names: Names, ours: str, theirs: str, width: int, at: tuple[int, ...] = ()) -> None:
    names.norm(f"params/{ours}", theirs, width, at)
    names.array(f"batch_stats/{ours}/mean", f"{theirs}.running_mean", (width,), at=at)
    names.array(f"batch_stats/{ours}/var", f"{theirs}.running_var", (width,), at=at)


def is_resnet(tensors: Iterable[str]) -> bool:
    """Whether the image tower behind some names is a ResNet."""
    return _BLOCK in tensors


def deduce_resnet(tensors: Iterable[str], shape: Callable[[str, int], tuple[int, ...]]) -> VisionConfig:
    """The image tower of a bare state dict, as OpenAI's code deduces it; its pool's heads are 64 wide.

    Args:
      tensors: names in the file.
      shape: of a tensor with a number of axes; raises `UserError` where there is none.

    Raises:
      ValueError: the sizes are those of no model.
    """
    blocks = {tuple(name.split(".")[1:3]) for name in tensors if name.startswith("visual.layer")}
    first, second, third, fourth = (sum(stage == f"layer{i}" for stage, *_ in blocks) for i in range(1, 5))
    width = shape(_BLOCK, 4)[0]
    positions, _ = shape("visual.attnpool.positional_embedding", 2)
    image_size = RESNET_STRIDE * round((positions - 1) ** 0.5)
    return resnet_config(image_size, (first, second, third, fourth), width)
