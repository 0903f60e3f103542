"""Encoders and samplers too sum many bfloat16 numbers in float32: what is evaluated is what was trained."""

import dataclasses

import jax
import numpy as np
import pytest

from clip_jax.model import ClipModel, abstract_variables
from configs import clip, codec_dalle, decoder_1b
from dalle_jax.codec import model as codec_model
from dalle_jax.config import from_config_dict
from dalle_jax.decoder.model import Decoder, abstract_params
from dalle_jax.decoder.sampling import make_caches
from dalle_jax.nn.attention import Pattern
from dalle_jax.training.trees import unbox
from launch.run.config import RunConfig
from tests.nn.test_reductions import long_sums


def config(module, arg, stage):
    found = getattr(from_config_dict(RunConfig, module.get_config(arg)), stage).model
    return dataclasses.replace(found, dtype="bfloat16") if hasattr(found, "dtype") else found


def abstract(shape, dtype=np.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def clip_encoder(arg, side):
    model = config(clip, arg, "clip")
    variables, size = unbox(abstract_variables(model)), model.vision.image_size
    inputs = {"image": abstract((512, size, size, 3), np.float32), "text": abstract((512, model.text.context_length))}
    encode = {"image": "encode_image", "text": "encode_text"}[side]
    return jax.make_jaxpr(lambda v, x: ClipModel(model).apply(v, x, method=encode))(variables, inputs[side])


def decoder_of_all_patterns():
    model = config(decoder_1b, "", "decoder")
    return dataclasses.replace(model, num_layers=len(Pattern), patterns=tuple(Pattern))


def prefill():
    model = decoder_of_all_patterns()
    run = lambda p, text: Decoder(model).apply({"params": p}, text, method="prefill")  # noqa: E731
    return jax.make_jaxpr(run)(unbox(abstract_params(model)), abstract((4, model.text_length)))


def step():
    model = decoder_of_all_patterns()

    def run(params, text, previous, position):
        caches = make_caches(model, Decoder(model).apply({"params": params}, text, method="prefill"), candidates=8)
        return Decoder(model).apply({"params": params}, previous, position, caches, method="step")

    arguments = abstract((4, model.text_length)), abstract((8, 4)), abstract(())
    return jax.make_jaxpr(run)(unbox(abstract_params(model)), *arguments)


def codec(way):
    model = config(codec_dalle, "", "codec")
    images, grid = abstract((64, 256, 256, 3), np.uint8), abstract((64, 32, 32))
    params = jax.eval_shape(codec_model.Codec(model).init, jax.random.key(0), images)["params"]
    run, x = {"encode": (codec_model.encode, images), "decode": (codec_model.decode, grid)}[way]
    return jax.make_jaxpr(lambda p, x: run(model, p, {}, x))(unbox(params), x)


PROGRAMS = {
    **{f"{arg}, image": (clip_encoder, arg, "image") for arg in ("vit_b32", "rn50", "siglip_b16")},
    **{f"{arg}, text": (clip_encoder, arg, "text") for arg in ("vit_b32", "siglip_b16")},
    "prefill": (prefill,),
    "step": (step,),
    "codec, encode": (codec, "encode"),
    "codec, decode": (codec, "decode"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_inference_program_sums_many_numbers_in_bfloat16(name):
    make, *arguments = PROGRAMS[name]
    program = make(*arguments)
    assert "bf16" in str(program)
    found, _ = long_sums(program)
    assert not found
