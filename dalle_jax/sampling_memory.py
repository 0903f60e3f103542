"""How much is sampled at once: what a sequence takes of a device's memory, and how a request is cut to fit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import CacheLayout
from dalle_jax.training.parallel.processes import gather
from dalle_jax.training.parallel.sharding import ShardingRules
from dalle_jax.training.telemetry.memory import free_bytes

_SEQUENCES_AT_ONCE = {True: 64, False: 256}
"""Sequences that a device samples at once at the most, on a CPU and elsewhere: more gain nothing there, and a run that
is stopped loses the chunk that it is at."""

_IMAGES_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a request is cut: every call of the sampler makes `candidates` of `prompts`, the last ones padded."""

    prompts: int
    candidates: int


def plan_chunks(
    config: DecoderConfig,
    image_size: int,
    mesh: Mesh,
    rules: ShardingRules,
    *,
    prompts: int,
    num_samples: int,
    guided: bool,
    limit: int | None,
) -> Plan:
    """Cuts a request into chunks that fit, candidates a multiple of the mesh's data devices.

    Args:
      config: of the decoder.
      image_size: pixels a side of the codec's images.
      mesh: to sample on.
      rules: candidates are spread over the axes of `batch`.
      prompts: of the request.
      num_samples: candidates of each prompt.
      guided: whether every prompt runs beside an empty caption.
      limit: sequences at once; None: what half of the free memory holds.

    Raises:
      UserError: `limit` is below 1.
    """
    devices = math.prod(mesh.shape[axis] for axis in rules.batch)
    branches = 2 if guided else 1
    sequence = branches * sequence_bytes(config, image_size)
    text = 0 if limit is not None else branches * mesh.devices.size * text_bytes(config)
    if limit is None:
        fitting = min(gather(max(int((free_bytes(mesh) * 0.5 - text) / sequence), 1)))
        # A power of two: a later start, with a little more or less of memory, needs the same programs and chunks.
        on_cpu = jax.default_backend() == "cpu"
        limit = min(2 ** (fitting.bit_length() - 1), _SEQUENCES_AT_ONCE[on_cpu] * devices)
    elif limit < 1:
        raise UserError(f"max_sequences must be 1 or more, not {limit}")
    # Never one row alone: XLA's product of one row on a CPU differs in rounding from that row among several.
    step = max(devices, 2)
    candidates = min(-(-num_samples // step), max(limit // step, 1)) * step
    together = limit * sequence // (candidates * sequence + text)
    return Plan(prompts=max(min(prompts, together), 1), candidates=candidates)


def images_at_once(image_size: int, mesh: Mesh) -> int:
    """Images that the codec encodes or decodes in one call: a power of two, 2 or more."""
    fitting = free_bytes(mesh) // (2 * mesh.devices.size * image_bytes(image_size))
    return 2 ** (min(max(fitting, 2), _IMAGES_AT_ONCE).bit_length() - 1)


def sequence_bytes(config: DecoderConfig, image_size: int) -> int:
    """Memory that sampling one sequence takes: its caches, its logits and its image with the codec's activations."""
    slots = sum(CacheLayout(pattern, config.grid).slots for pattern in config.schedule)
    width = config.num_heads * config.head_dim
    caches = 2 * slots * width * jnp.dtype(config.dtype).itemsize
    return caches + 16 * config.codebook_size + image_bytes(image_size)


def text_bytes(config: DecoderConfig) -> int:
    """Memory that a prompt's keys and values take on every device, whatever the number of its candidates."""
    width = config.num_heads * config.head_dim
    return 2 * config.num_layers * config.text_length * width * jnp.dtype(config.dtype).itemsize


def image_bytes(image_size: int) -> int:
    """What a codec takes for an image at its widest, about."""
    return 256 * 4 * image_size**2
