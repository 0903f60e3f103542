"""Floating-point operations of the codec by formula: 2 a multiply-add of every convolution and matrix product."""

from collections.abc import Iterator

from dalle_jax.codec.config import Body, CodecConfig, ConvConfig, PatchConfig, Relaxation


def forward_flops(config: CodecConfig, image_size: int) -> float:
    """Of encoding and decoding one image, the comparison with the codes included."""
    return encoder_flops(config, image_size) + decoder_flops(config, image_size, lookup=False)


def encoder_flops(config: CodecConfig, image_size: int) -> float:
    """From pixels to tokens, for one image."""
    features, pixels = config.encoder_features, image_size**2
    conv = config.body is Body.CONV
    products = _conv_encoder(config.conv, features) if conv else _patch_encoder(config.patch, features)
    macs = sum(weights * pixels / cell**2 for weights, cell in products)
    if config.relaxation is Relaxation.VQ:
        macs += config.codebook_size * features * config.grid_size(image_size) ** 2
    return 2.0 * macs


def decoder_flops(config: CodecConfig, image_size: int, lookup: bool = True) -> float:
    """From tokens to pixels, for one image; `lookup`: one-hot vectors are looked up, not multiplied."""
    features, pixels = config.encoder_features, image_size**2
    if lookup and config.relaxation is Relaxation.GUMBEL:
        features = 0
    conv = config.body is Body.CONV
    products = _conv_decoder(config.conv, features) if conv else _patch_decoder(config.patch, features)
    return 2.0 * sum(weights * pixels / cell**2 for weights, cell in products)


Products = Iterator[tuple[int, int]]
"""Pairs: the weights of a product, and the side in pixels of the cells that it runs on."""


def _conv_encoder(config: ConvConfig, features: int) -> Products:
    width = config.hidden_dim
    yield 7 * 7 * 3 * width, 1
    for group in range(config.num_groups):
        cell = 2**group
        for _ in range(config.blocks_per_group):
            out = config.hidden_dim * cell
            hidden = out // 4
            yield (width * out if width != out else 0), cell
            yield 9 * (width * hidden + 2 * hidden * hidden) + hidden * out, cell
            width = out
    yield width * features, config.stride


def _conv_decoder(config: ConvConfig, features: int) -> Products:
    width = config.decoder_input_dim
    yield features * width, config.stride
    for group in reversed(range(config.num_groups)):
        cell = 2**group
        for block in range(config.blocks_per_group):
            out = config.hidden_dim * cell
            hidden = out // 4
            # The 1x1 convolutions of a group's first block run before its upsampling.
            before = cell * 2 if block == 0 and cell != config.stride else cell
            yield (width * out if width != out else 0) + width * hidden, before
            yield 9 * (2 * hidden * hidden + hidden * out), cell
            width = out
    yield width * 6, 1


def _patch_encoder(config: PatchConfig, features: int) -> Products:
    yield 3 * config.fine_patch**2 * config.fine_dim, config.fine_patch
    yield config.fine_blocks * 2 * config.mlp_ratio * config.fine_dim**2, config.fine_patch
    yield config.merge**2 * config.fine_dim * config.token_dim, config.stride
    yield config.encoder_blocks * 2 * config.mlp_ratio * config.token_dim**2, config.stride
    yield config.token_dim * features, config.stride


def _patch_decoder(config: PatchConfig, features: int) -> Products:
    yield features * config.token_dim, config.stride
    yield config.decoder_blocks * 2 * config.mlp_ratio * config.token_dim**2, config.stride
    yield config.token_dim * config.merge**2 * config.fine_dim, config.stride
    yield config.fine_blocks * 2 * config.mlp_ratio * config.fine_dim**2, config.fine_patch
    yield config.fine_dim * 6 * config.fine_patch**2, config.fine_patch
