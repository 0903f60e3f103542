"""The decoder: a training step, and sampling the images of one prompt."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import decoder_1b
from dalle_jax.config import from_config_dict
from dalle_jax.decoder.config import DecoderConfig, DecoderStage
from dalle_jax.decoder.model import init_params
from dalle_jax.decoder.sampling import SamplingConfig, candidate_keys, no_prime, prefill, sample_tokens, sampling_params
from dalle_jax.decoder.task import DecoderTask, training_flops
from dalle_jax.nn.attention import Pattern, attended_pairs
from dalle_jax.nn.cpu_decoding import DecodingLayout
from dalle_jax.nn.remat import Remat
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from launch.benchmarks.training import repeated_step
from launch.benchmarks.workload import Row, Workload, import_torch, product_dtype

SPARSE = (Pattern.ROW, Pattern.COLUMN, Pattern.CONV)


def small(patterns: tuple[Pattern, ...]) -> DecoderConfig:
    """The model that is compared with the peer's; `patterns` repeat over its layers."""
    layers = 8
    return DecoderConfig(
        num_layers=layers,
        num_heads=8,
        head_dim=64,
        embed_dim=512,
        mlp_dim=2048,
        text_vocab_size=10_000,
        text_length=64,
        codebook_size=8192,
        grid_size=16,
        patterns=tuple(patterns[i % len(patterns)] for i in range(layers)),
        remat=Remat.NONE,
        dtype=product_dtype(),
    )


def one_billion() -> DecoderConfig:
    """`configs/decoder_1b.py`."""
    return from_config_dict(DecoderStage, decoder_1b.get_config()["decoder"], "config.decoder").model


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """In place of a codec: batches bring their tokens."""

    codebook_size: int
    grid_size: int
    image_size: int = 0

    def encode(self, images: Any) -> Any:
        raise NotImplementedError("the batch has image_tokens")

    def decode(self, tokens: Any) -> Any:
        raise NotImplementedError("nothing is sampled")


def step(config: DecoderConfig, batch_size: int, micro_batches: int = 1) -> Workload:
    """A training step of a decoder."""
    rng = np.random.default_rng(0)
    batch = {
        "text": rng.integers(4, config.text_vocab_size, (batch_size, config.text_length), np.int32),
        "image_tokens": rng.integers(0, config.codebook_size, (batch_size, config.image_length), np.int32),
    }
    task = DecoderTask(config, _Tokens(config.codebook_size, config.grid_size))
    return repeated_step(
        task, batch, batch_size, batch_size * (config.text_length + config.image_length), micro_batches
    )


def sampling(config: DecoderConfig, candidates: int) -> Workload:
    """Prefill and all image positions of one prompt."""
    fresh = jax.jit(lambda key: nn.unbox(init_params(config, key)))(jax.random.key(0))
    params = sampling_params(config, fresh, DecodingLayout.fastest(make_mesh(MeshConfig(), jax.devices()[:1])))
    text = jnp.asarray(np.random.default_rng(0).integers(4, config.text_vocab_size, (1, config.text_length), np.int32))
    keys, prime = candidate_keys(0, jnp.arange(candidates)), no_prime(config, 1)

    def run() -> jax.Array:
        return sample_tokens(config, params, prefill(config, params, text), keys, prime, SamplingConfig())

    return Workload(
        run,
        flops=sampling_flops(config, candidates),
        bytes=sampling_bytes(config, candidates),
        items=candidates * config.image_length,
    )


def _products(config: DecoderConfig) -> tuple[int, int]:
    """Weights of the matrix products that a position goes through: of all layers, and of the image's head."""
    width = config.num_heads * config.head_dim
    layers = config.num_layers * (4 * config.embed_dim * width + 2 * config.embed_dim * config.mlp_dim)
    return layers, config.embed_dim * config.codebook_size


def sampling_flops(config: DecoderConfig, candidates: int) -> float:
    """The prompt's positions once, those of every candidate's image; counted as in `training_flops`, forward only."""
    layers, head = _products(config)
    text, image = config.text_length, config.image_length
    text_pairs = config.num_layers * text * (text + 1) // 2
    pairs = text_pairs + candidates * (config.num_layers * text * image + sampling_pairs(config))
    products = layers * text + candidates * (layers + head) * image
    return 2.0 * products + 4.0 * config.num_heads * config.head_dim * pairs


def sampling_bytes(config: DecoderConfig, candidates: int) -> float:
    """Weights and the prompt's keys and values once a step, a candidate's own each for itself."""
    width = config.num_heads * config.head_dim
    text_cache = 2 * config.num_layers * config.text_length * width
    once = config.image_length * (sum(_products(config)) + text_cache)
    return jnp.dtype(config.dtype).itemsize * (once + 2.0 * candidates * width * sampling_pairs(config))


def sampling_pairs(config: DecoderConfig) -> int:
    """(query, key) pairs between the image positions of one image, over all layers."""
    return attended_pairs(config.schedule, text_length=0, **dataclasses.asdict(config.grid))


def _peer(attn_types: tuple[str, ...]) -> Any:
    """DALLE-pytorch's model of the same sizes."""
    import sys
    import types

    import_torch()
    for name in ("taming", "taming.models", "taming.models.vqgan", "pkg_resources"):
        sys.modules.setdefault(name, types.ModuleType(name))  # imported by the package, used by other models of it
    vqgan: Any = sys.modules["taming.models.vqgan"]
    vqgan.VQModel = vqgan.GumbelVQ = getattr(vqgan, "VQModel", type("Absent", (), {}))
    resources: Any = sys.modules["pkg_resources"]
    resources.get_distribution = getattr(resources, "get_distribution", None)
    from dalle_pytorch import DALLE, DiscreteVAE

    vae = DiscreteVAE(image_size=128, num_layers=3, num_tokens=8192, codebook_dim=512, hidden_dim=64)
    sizes = dict(dim=512, num_text_tokens=10_000, text_seq_len=64, depth=8, heads=8, dim_head=64)
    return DALLE(vae=vae, attn_types=attn_types, **sizes)


def peer_step() -> Workload:
    """DALLE-pytorch's training step of the same size."""
    torch = import_torch()
    model = _peer(("axial_row", "axial_col", "conv_like")).train()
    text, image = torch.randint(1, 10_000, (8, 64)), torch.randint(0, 8192, (8, 256))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(text, image, return_loss=True).backward()
        optimizer.step()

    # Its gated MLP has three products where ours has two.
    config = small(SPARSE)
    gated = dataclasses.replace(config, mlp_dim=config.mlp_dim * 3 // 2)
    return Workload(run, flops=training_flops(gated, 8), items=8 * 320)


def peer_sampling() -> Workload:
    """Full attention, with the cache that the package means to use but drops without guidance passed on."""
    torch = import_torch()
    model = _peer(("full",)).eval()
    text = torch.randint(1, 10_000, (4, 64))
    forward = model.forward

    def with_cache(*args, cond_scale=1, cache=None, **kwargs):
        return forward(*args, cache=cache, **kwargs)

    model.forward_with_cond_scale = with_cache

    def run() -> None:
        with torch.inference_mode():
            model.generate_images(text.clone(), filter_thres=0.9, use_cache=True)

    return Workload(run, items=4 * 256)  # its operations are of another count: compared by tokens a second


def _sampling_row(name: str, patterns: tuple[Pattern, ...]) -> Row:
    shape = f"{'/'.join(pattern.value for pattern in patterns)}, 4 images of one prompt, 256 steps"
    make = lambda: sampling(small(patterns), 4)  # noqa: E731
    return Row(
        name=name,
        shape=shape,
        unit="tokens",
        make=make,
        make_peer=peer_sampling,
        peer="DALLE-pytorch, full, cache mended",
        reach=5.0,
    )


ROWS = (
    Row(
        name="decoder_step",
        shape="d512 L8 row/column/conv, 64 + 16x16, batch 8",
        unit="tokens",
        make=lambda: step(small(SPARSE), 8),
        make_peer=peer_step,
        peer="DALLE-pytorch",
        reach=1.2,
    ),
    _sampling_row("sampling", SPARSE),
    _sampling_row("sampling_full", (Pattern.FULL,)),
    Row("decoder_1b_step", "1.3 B, 256 + 32x32, batch 16", "tokens", lambda: step(one_billion(), 16), gpu=True),
    *(
        Row(
            f"sampling_1b_{candidates}",
            f"1.3 B, {candidates} of one prompt, 1024 steps",
            "tokens",
            lambda candidates=candidates: sampling(one_billion(), candidates),
            gpu=True,
        )
        for candidates in (1, 64, 512)
    ),
)
