"""The workloads of the benchmark run, at sizes that take seconds, and count what they say; nothing here is timed."""

import numpy as np
import pytest

from dalle_jax.nn.transformer import Remat
from launch.bench_rows import clip, contrastive, loading, text


@pytest.mark.parametrize("preset", ["tiny", "siglip_tiny"])
def test_a_training_step_of_clip(preset):
    workload = clip.step(preset, 4)
    assert workload.flops > 0 and workload.items == 4
    workload.run()


def test_encoding_pictures_and_captions():
    pictures, captions = clip.encode_image("tiny", 3), clip.encode_text("tiny", 3)
    assert np.shape(pictures.run())[0] == np.shape(captions.run())[0] == 3
    assert pictures.flops > 0 and captions.flops > 0


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
