"""Folders and files that hold no whole model: called what they are, with what makes one of them."""

import logging

import jax
import pytest

import clip_jax
from clip_jax.model import init_params
from dalle_jax.errors import UserError
from dalle_jax.training.trees import unbox
from tests.clip.small_clip import CONFIG, tokenize


def touch(folder, *names, content=b"\x80\x04N."):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


ZERO = ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")


@pytest.mark.parametrize("path", ["", "global_step10", *(f"global_step10/{name}" for name in ZERO)])
def test_parts_of_deepspeed(tmp_path, path):
    touch(tmp_path, *(f"global_step10/{name}" for name in ZERO), "latest", "zero_to_fp32.py")
    with pytest.raises(UserError, match=r"parts of DeepSpeed's ZeRO.*zero_to_fp32.py FOLDER OUT.*give OUT"):
        clip_jax.load(tmp_path / path)


@pytest.mark.parametrize("path", ["", "__1_0.distcp"])
def test_parts_of_a_distributed_checkpoint(tmp_path, path):
    touch(tmp_path, "__0_0.distcp", "__1_0.distcp", ".metadata")
    with pytest.raises(UserError, match=r"parts of a distributed checkpoint of PyTorch's.*dcp_to_torch FOLDER OUT"):
        clip_jax.load(tmp_path / path)


@pytest.fixture
def clip():
    return clip_jax.Clip(CONFIG, unbox(init_params(CONFIG, jax.random.key(0))), tokenize)


@pytest.mark.parametrize(
    ("format", "name"), [("hf", "model.safetensors"), ("open_clip", "open_clip_model.safetensors")]
)
def test_weights_that_were_never_fetched(clip, tmp_path, format, name):
    """Nothing beside the config, and a link into a cache whose file is gone."""
    clip_jax.save(clip, tmp_path, format=format)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"no weights beside it.*weights are not downloaded here: hf download"):
        clip_jax.load(tmp_path)
    (tmp_path / name).symlink_to("../../blobs/0123")
    with pytest.raises(UserError, match=rf"{name} is a link to nothing.*hf download"):
        clip_jax.load(tmp_path)


def test_saving_beside_weights_of_the_other_format_is_said(clip, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        clip_jax.save(clip, tmp_path, format="hf")
        assert not caplog.records
        clip_jax.save(clip, tmp_path, format="open_clip")
    assert "holds Hugging Face's weights too, which transformers reads" in caplog.text
