"""What is computed in float32 asks for float32 on devices whose default is coarser."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from configs import clip, codec_dalle, decoder_1b, quickstart
from dalle_jax.config import from_config_dict
from dalle_jax.nn.precision import einsum, matmul
from dalle_jax.training.config import MeshConfig
from launch.planning.families import FAMILIES
from launch.planning.programs import sampling_targets
from launch.planning.topologies import Topology
from launch.run.config import RunConfig
from tests.nn.traced import equations, traced_stage

HIGHEST, DEFAULT = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT


def products(program: Any) -> Iterator[tuple[list[str], Any]]:
    """Dtypes of the factors and precision of every product and convolution of a traced program, gradients included."""
    for equation in equations(program):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield [str(x.aval.dtype) for x in equation.invars], equation.params["precision"]


def traced_step(module, arg, stage, dtype):
    run = from_config_dict(RunConfig, module.get_config(arg))
    if stage == "decoder":
        model = dataclasses.replace(run.decoder.model, dtype=dtype)
        run = dataclasses.replace(run, decoder=dataclasses.replace(run.decoder, model=model))
    return traced_stage(run, stage)


@pytest.mark.parametrize(
    ("module", "arg", "stage"),
    [
        (decoder_1b, "tiny", "decoder"),
        (codec_dalle, "tiny", "codec"),
        (quickstart, "tiny", "codec"),
        (clip, "tiny", "clip"),
        (clip, "tiny_resnet", "clip"),
        (clip, "siglip_tiny", "clip"),
    ],
)
def test_every_product_of_float32_is_one(module, arg, stage):
    found = list(products(traced_step(module, arg, stage, "float32")))
    assert found and all(dtypes == ["float32", "float32"] for dtypes, _ in found)
    assert {precision for _, precision in found} == {(HIGHEST, HIGHEST)}


def test_drawing_multiplies_float32_as_such():
    """The caption's program and the loop, on two devices: on one CPU device kernels take another form."""
    run, topology = (
        from_config_dict(RunConfig, decoder_1b.get_config("tiny")),
        Topology("v5e-2", FAMILIES["v5e"], (1, 2)),
    )
    prefill, drawing = sampling_targets(run, MeshConfig(data=2, fsdp=1), topology, jax.devices()[:2], 4)
    traced, _ = prefill.traced()
    programs = [traced.jaxpr, drawing(prefill.compile(traced)).traced()[0].jaxpr]
    assert {precision for program in programs for _, precision in products(program)} == {(HIGHEST, HIGHEST)}


def test_logits_alone_are_exact_where_a_model_is_bfloat16():
    """Two heads, each with two gradients. Gradients of attention's scores are float32 until they are rounded."""
    found = list(products(traced_step(decoder_1b, "tiny", "decoder", "bfloat16")))
    exact = [dtypes for dtypes, precision in found if precision == (HIGHEST, HIGHEST)]
    assert exact == [["float32", "float32"]] * 6
    assert {precision for dtypes, precision in found if "bfloat16" in dtypes} == {(DEFAULT, DEFAULT)}


def test_products_by_name():
    a, b = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(3, 4)
    for product in (matmul, lambda a, b: einsum("ij,jk->ik", a, b)):
        assert (product(a, b) == a @ b).all()
        half = product(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
        assert half.dtype == jnp.bfloat16 and (half == (a @ b).astype(jnp.bfloat16)).all()
    mixed = jax.make_jaxpr(matmul)(a, b.astype(jnp.bfloat16))
    assert [precision for _, precision in products(mixed)] == [(HIGHEST, HIGHEST)]
