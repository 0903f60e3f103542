"""The workloads of the benchmark run, at sizes that take seconds, and count what they say; nothing here is timed."""

import dataclasses

import jax
import numpy as np
import pytest

from clip_jax.model import abstract_params
from dalle_jax.decoder.task import training_flops
from dalle_jax.nn.attention import Pattern
from dalle_jax.nn.remat import Remat
from launch.benchmarks import clip, contrastive, decoder, loading, text


@pytest.mark.parametrize("preset", ["tiny", "siglip_tiny"])
def test_a_training_step_of_clip(preset):
    workload = clip.step(preset, 4)
    assert workload.flops > 0 and workload.items == 4
    shapes = jax.tree.leaves(abstract_params(clip.published(preset).model))
    # Each parameter and its two sums, float32, read and written; and the number of steps.
    assert workload.bytes == pytest.approx(2 * 3 * 4 * sum(leaf.size for leaf in shapes), abs=64)
    workload.run()


def test_encoding_pictures_and_captions():
    pictures, captions = clip.encode_image("tiny", 3), clip.encode_text("tiny", 3)
    assert np.shape(pictures.run())[0] == np.shape(captions.run())[0] == 3
    assert pictures.flops > 0 and captions.flops > 0
    shapes = jax.tree.leaves(abstract_params(clip.published("tiny").model))
    table = 160 * 64
    # All but the table of words and the logits' scale is read by one or the other.
    assert pictures.bytes + captions.bytes == 4 * (sum(leaf.size for leaf in shapes) - table - 1)
    assert pictures.bytes > 0 and captions.bytes > 0


@pytest.mark.parametrize("patterns", [decoder.SPARSE, (Pattern.FULL,)])
def test_operations_of_sampling(patterns):
    """Of one candidate a training step's forward pass, less the text's head; the prompt is read once for all."""
    config = dataclasses.replace(decoder.small(patterns), text_length=8, grid_size=4)
    head = config.embed_dim * config.text_vocab_size * (config.text_length - 1)
    one, two, three = (decoder.sampling_flops(config, candidates) for candidates in (1, 2, 3))
    assert one == training_flops(config, 1) / 3 - 2 * head
    assert two - one == three - two < one


def test_published_presets_recompute_nothing_and_unroll_convolutions_on_a_cpu():
    resnet, vit = clip.published("rn50").model.vision.resnet, clip.published("vit_b32").model.vision.vit
    assert resnet is not None and not resnet.scan and resnet.dtype == vit.dtype == "float32"
    assert resnet.remat is vit.remat is Remat.NONE


def test_a_loss_on_two_devices_holds_no_array_of_the_whole_batch():
    whole = 4 * contrastive.BATCH**2
    for loss in ("softmax", "sigmoid"):
        workload = contrastive.on_devices(loss, 2)
        workload.run()
        assert 0 < workload.facts["largest_array_bytes"] <= whole / 2


def test_captions_to_ids():
    captions = text.captions()
    assert len(captions) == len(set(captions)) == text.COUNT
    assert np.shape(text.ours().run()) == (text.COUNT, 77)


def test_loading_tells_its_time_and_its_memory(monkeypatch):
    monkeypatch.setattr(loading, "published", lambda _: clip.published("tiny"))
    workload = loading.load()
    workload.run()
    facts = workload.facts
    assert facts["load_seconds"] > 0 and facts["load_peak_bytes"] > 0
    assert facts["file_bytes"] > facts["largest_tensor_bytes"] > 0
