"""The contrastive losses over a global batch, forward and backward, on 1 to 8 CPU devices that share this machine.

What counts is the largest array that a device holds, read from the compiled program; the times say little of a cluster.
Each row runs in a process of its own, because the number of devices is a process's.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.losses.sigmoid import sigmoid_loss
from clip_jax.losses.softmax import contrastive_loss
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, replicated
from launch.benchmarks import subprocess_workload
from launch.benchmarks.workload import Row, Workload

BATCH, EMBED, CHUNK = 4096, 256, 256

LOSSES: dict[str, Callable[..., jax.Array]] = {
    "softmax": lambda image, text, scale, bias: contrastive_loss(image, text, scale).loss,
    "softmax_chunked": lambda image, text, scale, bias: contrastive_loss(image, text, scale, chunk=CHUNK).loss,
    "sigmoid": lambda image, text, scale, bias: sigmoid_loss(image, text, scale, bias).loss,
}

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def largest_array(program: str) -> int:
    """Bytes of the largest array that a device holds, from the text of a compiled program (`compiled.as_text()`)."""
    found = re.findall(r"\b(" + "|".join(_BYTES) + r")\[([\d,]+)\]", program)
    return max(_BYTES[kind] * int(np.prod([int(size) for size in shape.split(",")])) for kind, shape in found)


def compile_loss(loss: Callable[..., jax.Array], batch_size: int, embed_dim: int, mesh: jax.sharding.Mesh):
    """The program of value and gradients of a loss of (image, text, scale, bias), and arguments on the mesh."""
    image, text = jax.random.normal(jax.random.key(0), (2, batch_size, embed_dim))
    rules = ShardingRules()
    rows, copies = batch_sharding(mesh, rules), replicated(mesh)
    with jax.set_mesh(mesh), rules.context():
        arguments = (image, text, jnp.float32(10), jnp.float32(-10))
        placed = jax.device_put(arguments, (rows, rows, copies, copies))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).lower(*placed).compile(), placed


def on_devices(loss: str, devices: int) -> Workload:
    """A loss on so many devices, in a process that has them."""
    there = subprocess_workload.start(
        f"loss_{loss}_{devices}",
        f"from {__name__} import serve; serve({loss!r}, {devices})",
        {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
    )
    directions = 1 if loss == "sigmoid" else 2
    return Workload(there.run, flops=3 * directions * 2 * BATCH**2 * EMBED, items=BATCH, facts=there.facts)


def serve(loss: str, devices: int) -> None:
    """The other side of `on_devices`."""
    program, arguments = compile_loss(LOSSES[loss], BATCH, EMBED, make_mesh(MeshConfig(), jax.devices()[:devices]))
    facts = {"largest_array_bytes": float(largest_array(program.as_text() or ""))}
    subprocess_workload.serve(facts, lambda: program(*arguments))


ROWS = tuple(
    Row(
        f"loss_{loss}_{devices}",
        f"batch {BATCH}, width {EMBED}, {devices} device{'s' * (devices > 1)}"
        + f", {CHUNK} captions at once" * loss.endswith("chunked"),
        "pairs",
        functools.partial(on_devices, loss, devices),
    )
    for loss in LOSSES
    for devices in (1, 2, 4, 8)
)
