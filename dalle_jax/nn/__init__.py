"""Layers that both packages stand on: attention, transformer blocks, embeddings.

Dimension key, used in names of arrays (`q_BTNH`) and in shape annotations throughout both packages:

    B batch          T query position     N heads       V vocabulary
    P prompt         S key position       H head_dim    K codebook entries
    C candidate      D embed              F mlp
    L layers         height, width: of a picture or a token grid, always spelt out

Logical axes that modules put on their parameters, which `dalle_jax.training.parallel.sharding.ShardingRules` maps to
mesh axes:

    "embed"     the residual width D            "vocab"    text vocabulary or codebook entries
    "mlp"       the hidden width F              "layers"   the axis that `nn.scan` stacks
    "heads"     N * head_dim, fused             "conv_in", "conv_out"  channels of a convolution
    None        replicated (positions, gains, biases of small size)
"""
