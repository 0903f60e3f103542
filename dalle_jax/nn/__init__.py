"""Layers that both packages stand on: attention, transformer blocks, embeddings.

Dimension key, used in names of arrays (`q_BTNH`) and in shape annotations throughout both packages:

    B batch          T query position     N heads              V text vocabulary
    P prompt         S key position       H head_dim           K codebook entries
    C candidate      G image tokens       W N * H, fused       E the space of CLIP's features
    Q P, doubled by guidance              D the residual width L layers
    n items on the host                   i inputs             o outputs          c channels

What is spelt out is the length that it says: `height` and `width` of an image or a token grid, `classes`, `captions`.

Logical axes that modules put on their parameters, which `dalle_jax.training.parallel.sharding.ShardingRules` maps to
mesh axes:

    "embed"     the residual width D            "vocab"    text vocabulary or codebook entries
    "mlp"       the hidden width                "layers"   the axis that `nn.scan` stacks
    "heads"     N * head_dim, fused             "conv_in", "conv_out"  channels of a convolution
    None        replicated (positions, gains, biases of small size)
"""
