"""big_vision's checkpoints of SigLIP (`.npz`), where the published models come from: names, and sizes from shapes.

Its trees are Flax's own: kernels as here, heads of attention apart, blocks one by one or in a stack.
"""

from collections.abc import Mapping

from clip_jax.config import ClipConfig, TextConfig, TextTower, VisionConfig, VisionTower, tower_config
from clip_jax.weights.siglip import LOGITS, PIXELS, SIGLIP_END
from clip_jax.weights.timm import NORM_EPSILON
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.nn.transformer import TransformerConfig
from dalle_jax.weights import Names, Tensor

_ROOTS = ("params/", "opt/target/", "")
"""What stands before the names of parameters, by the age of the file."""

_PATCHES = "img/embedding/kernel"
"""There is an image tower of big_vision's where this is."""

_ENCODERS = {"vision": "img/Transformer", "text": "txt/Encoder_0"}
_ATTENTION = "MultiHeadDotProductAttention_0"


def is_big_vision(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a model with two towers of big_vision's."""
    return any(f"{root}{_PATCHES}" in tensors for root in _ROOTS)


def without_root(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters by the names that begin with their tower; sums of the optimizer are left."""
    root = next(root for root in _ROOTS if f"{root}{_PATCHES}" in tensors)
    return {name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)}


def deduce_big_vision(tensors: Mapping[str, Tensor], where: str) -> ClipConfig:
    """The model that a checkpoint is of, from shapes; of images that patches do not fill, one without a rest.

    Args:
      tensors: of `without_root`.
      where: name of the file, for messages.

    Raises:
      UserError: the towers are not SigLIP's, or their shapes are those of no model.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            other = "its towers are not SigLIP's, which is the one model of big_vision's that is read here"
            raise UserError(f"{where} has no '{name}': {other}")
        if len(tensors[name].shape) != rank or 0 in tensors[name].shape:
            raise UserError(
                f"{where}: '{name}' is {tensors[name].shape} and should have {rank} axes, none of them empty"
            )
        return tensors[name].shape

    def tower(side: str) -> TransformerConfig:
        block, stacked = _blocks(tensors, side, where)
        *layers, width, _, head_dim = shape(f"{block[0]}/{_ATTENTION}/query/kernel", 3 + stacked)
        *_, mlp_dim = shape(f"{block[0]}/MlpBlock_0/Dense_0/kernel", 2 + stacked)
        return tower_config(
            layers[0] if stacked else len(block),
            width,
            head_dim,
            mlp_dim=mlp_dim,
            activation=Activation.GELU_TANH,
            norm_epsilon=NORM_EPSILON,
        )

    patch_size, *_ = shape(_PATCHES, 4)
    shape("img/MAPHead_0/probe", 3)
    _, positions, _ = shape("img/pos_embedding", 3)
    vocab_size, _ = shape("txt/Embed_0/embedding", 2)
    _, context_length, _ = shape("txt/pos_embedding", 3)
    _, embed_dim = shape("txt/head/kernel", 2)
    try:
        vision = VisionConfig(
            patch_size * round(positions**0.5), patch_size, tower("vision"), VisionTower.SIGLIP, **PIXELS
        )
        text = TextConfig(vocab_size, context_length, SIGLIP_END, tower("text"), TextTower.SIGLIP)
        return ClipConfig(embed_dim, vision, text, **(LOGITS if "b" in tensors else {}))
    except ValueError as error:
        raise UserError(f"{where} describes no model: {error}") from error


def _blocks(tensors: Mapping[str, Tensor], side: str, where: str) -> tuple[list[str], bool]:
    """What stands before the names of each block, and whether all of them are in one stack."""
    start = f"{_ENCODERS[side]}/encoderblock"
    if any(name.startswith(f"{start}/") for name in tensors):
        return [start], True
    numbers = {name.removeprefix(f"{start}_").split("/")[0] for name in tensors if name.startswith(f"{start}_")}
    if not numbers:
        raise UserError(f"{where} has no '{start}_0': its towers are not SigLIP's")
    return [f"{start}_{i}" for i in range(len(numbers))], False


def big_vision_names(config: ClipConfig, tensors: Mapping[str, Tensor], where: str) -> Names:
    """The tensors of a checkpoint for every variable of a model."""
    names, text, vision = Names(), config.text, config.vision
    names.array("params/logit_scale", "t", (1,))
    if config.objective.has_bias:
        names.array("params/logit_bias", "b", (1,))
    width, ours = text.transformer.embed_dim, "params/text"
    names.array(f"{ours}/token_embedding/embedding", "txt/Embed_0/embedding", (text.vocab_size, width))
    names.array(f"{ours}/position_embedding", "txt/pos_embedding", (1, text.context_length, width))
    _encoder(names, "text", text.transformer, _blocks(tensors, "text", where))
    _norm(names, f"{ours}/norm_final", f"{_ENCODERS['text']}/encoder_norm", (), width)
    _dense(names, "params/text_projection", "txt/head", (), (width,), (config.embed_dim,))
    width, side, ours = vision.vit.embed_dim, vision.patch_size, "params/vision"
    names.array(f"{ours}/patch_embedding/kernel", _PATCHES, (side, side, 3, width))
    names.array(f"{ours}/patch_embedding/bias", "img/embedding/bias", (width,))
    names.array(f"{ours}/position_embedding", "img/pos_embedding", (1, vision.num_patches, width))
    _encoder(names, "vision", vision.vit, _blocks(tensors, "vision", where))
    _norm(names, f"{ours}/norm_post", f"{_ENCODERS['vision']}/encoder_norm", (), width)
    theirs = "img/MAPHead_0"
    names.array(f"{ours}/pooling/probe", f"{theirs}/probe", (1, 1, width))
    _attention(names, f"{ours}/pooling", theirs, (), vision.vit, ())
    _norm(names, f"{ours}/pooling/norm", f"{theirs}/LayerNorm_0", (), width)
    _mlp(names, f"{ours}/pooling/mlp", f"{theirs}/MlpBlock_0", (), vision.vit, ())
    return names


def _encoder(names: Names, side: str, config: TransformerConfig, blocks: tuple[list[str], bool]) -> None:
    layer, (starts, stacked) = f"params/{side}/transformer/group/layer_0", blocks
    stack = (config.num_layers,) if stacked else ()
    for i, block in enumerate(starts):
        at = (None,) if stacked else (i,)
        _norm(names, f"{layer}/norm_1", f"{block}/LayerNorm_0", stack, config.embed_dim, at)
        _norm(names, f"{layer}/norm_2", f"{block}/LayerNorm_1", stack, config.embed_dim, at)
        _attention(names, f"{layer}/attention", block, stack, config, at)
        _mlp(names, f"{layer}/mlp", f"{block}/MlpBlock_0", stack, config, at)


_Stack = tuple[int, ...]
"""The axis of layers, where blocks are in a stack."""

_At = tuple[int | None, ...]
"""Where a tensor lies along our axis of layers."""


def _attention(names: Names, ours: str, theirs: str, stack: _Stack, config: TransformerConfig, at: _At) -> None:
    width, heads = config.embed_dim, (config.num_heads, config.head_dim)
    for j, part in enumerate(("query", "key", "value")):
        start = f"{theirs}/{_ATTENTION}/{part}"
        names.array(f"{ours}/qkv_kernel", f"{start}/kernel", (*stack, width, *heads), at=(*at, None, j))
        names.array(f"{ours}/qkv_bias", f"{start}/bias", (*stack, *heads), at=(*at, j))
    _dense(
        names, f"{ours}/out", theirs=f"{theirs}/{_ATTENTION}/out", stack=stack, inputs=heads, outputs=(width,), at=at
    )


def _mlp(names: Names, ours: str, theirs: str, stack: _Stack, config: TransformerConfig, at: _At) -> None:
    _dense(
        names,
        f"{ours}/in",
        theirs=f"{theirs}/Dense_0",
        stack=stack,
        inputs=(config.embed_dim,),
        outputs=(config.mlp_dim,),
        at=at,
    )
    _dense(
        names,
        f"{ours}/out",
        theirs=f"{theirs}/Dense_1",
        stack=stack,
        inputs=(config.mlp_dim,),
        outputs=(config.embed_dim,),
        at=at,
    )


def _dense(names: Names, ours: str, theirs: str, stack: _Stack, inputs: _Stack, outputs: _Stack, at: _At = ()) -> None:
    names.array(f"{ours}/kernel", f"{theirs}/kernel", (*stack, *inputs, *outputs), at=at)
    names.array(f"{ours}/bias", f"{theirs}/bias", (*stack, *outputs), at=at)


def _norm(names: Names, ours: str, theirs: str, stack: _Stack, width: int, at: _At = ()) -> None:
    for part in ("scale", "bias"):
        names.array(f"{ours}/{part}", f"{theirs}/{part}", (*stack, width), at=at)
