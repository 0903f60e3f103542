"""Checkpoints of training programs: where the model is in them, and what stands before its names."""

import logging

import numpy as np
import pytest

from dalle_jax.errors import UserError
from dalle_jax.weights.reading import read_tensors
from tests.weights import pickled
from tests.weights.pickled import refused

FLOATS = np.arange(6, dtype=np.float32)
CONTENT = {0: FLOATS.tobytes(), 1: (2 * FLOATS).tobytes()}


def state(prefix="", storage=0):
    matrix, vector = pickled.tensor(storage, 6, (2, 3)), pickled.tensor(storage, 6, (6,))
    return {f"{prefix}block.0.weight": matrix, f"{prefix}bias": vector}


def reads(path, factor=1, **options):
    found = read_tensors(path, **options)
    assert list(found) == ["block.0.weight", "bias"]
    np.testing.assert_array_equal(found["bias"].read(), factor * FLOATS)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model.", "module.model.",
     "_fsdp_wrapped_module.", "_forward_module.model.", "base_model.model.", "clip.", "model.clip."],
)  # fmt: skip
def test_wrappers_around_the_model(tmp_path, prefix):
    reads(pickled.archive(tmp_path / "a.pt", {"state_dict": state(prefix)}, CONTENT))


@pytest.mark.parametrize("mark", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_inside_the_model(tmp_path, mark):
    inner = {name.replace("block.0.", f"block.0.{mark}."): value for name, value in state().items()}
    reads(pickled.archive(tmp_path / "a.pt", inner, CONTENT))
    both = {**inner, **state()}
    refused(pickled.archive(tmp_path / "b.pt", both, CONTENT), "differ by a wrapper's part alone")


@pytest.mark.parametrize(
    "key",
    ["state_dict", "model_state_dict", "model", "module", "model_state", "net", "params", "weights", "clip", "ema"],
)
def test_the_model_among_other_values(tmp_path, key):
    optimizer = {"state": {0: {"exp_avg": pickled.tensor(1, 6, (2, 3))}}, "param_groups": [{"lr": 1}]}
    rng = {"torch": pickled.tensor(1, 6, (6,))}
    reads(pickled.archive(tmp_path / "a.pt", {"epoch": 1, "optimizer": optimizer, "rng": rng, key: state()}, CONTENT))
    nested = {"checkpoint": {key: state()}, "epoch": 1}
    reads(pickled.archive(tmp_path / "b.pt", nested, CONTENT), key="checkpoint")
    reads(pickled.archive(tmp_path / "c.pt", nested, CONTENT), key=f"checkpoint.{key}")


def test_which_of_two_is_taken_is_said_and_may_be_chosen(tmp_path, caplog):
    both = {"state_dict": state(), "state_dict_ema": state("module.", storage=1)}
    path = pickled.archive(tmp_path / "a.pt", both, CONTENT)
    with caplog.at_level(logging.WARNING, logger="dalle_jax"):
        reads(path)
    assert "'state_dict' is taken" in caplog.text and "key='state_dict_ema'" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="dalle_jax"):
        reads(path, factor=2, key="state_dict_ema")
    assert not caplog.text
    with pytest.raises(UserError, match="nothing under key='ema' .its keys are 'state_dict', 'state_dict_ema'"):
        read_tensors(path, key="ema")
    with pytest.raises(UserError, match="nothing under key='state_dict.x'"):
        read_tensors(path, key="state_dict.x")


def test_several_that_are_alike_are_named(tmp_path):
    path = pickled.archive(tmp_path / "a.pt", {"teacher": state(), "student": state(storage=1)}, CONTENT)
    refused(path, "choose one with key='teacher', key='student'")
    reads(path, factor=2, key="student")


def test_a_prefix_chooses_among_names(tmp_path):
    names = {**state("clip."), **state("teacher.", storage=1), "metric": pickled.tensor(1, 6, (6,))}
    path = pickled.archive(tmp_path / "a.pt", {"state_dict": names}, CONTENT)
    assert len(read_tensors(path)) == 5
    for prefix in ("clip.", "clip"):
        reads(path, prefix=prefix)
    reads(path, factor=2, prefix="teacher")
    with pytest.raises(UserError, match=r"no name begins with prefix='ema'; names begin with 'clip\.' \(2\), 'teacher"):
        read_tensors(path, prefix="ema")
    wrapped = {f"module.{name}": value for name, value in names.items()}
    reads(pickled.archive(tmp_path / "b.pt", wrapped, CONTENT), prefix="clip.")
    reads(pickled.archive(tmp_path / "c.pt", state("model."), CONTENT), prefix="model.")


def test_a_key_where_there_are_none(tmp_path):
    np.savez(tmp_path / "a.npz", w=FLOATS)
    with pytest.raises(UserError, match="leave key='x' out"):
        read_tensors(tmp_path / "a.npz", key="x")


def test_adapters_are_not_weights(tmp_path):
    path = pickled.archive(tmp_path / "a.pt", {"w.lora_A.weight": pickled.tensor(0, 6, (2, 3))}, CONTENT)
    refused(path, "low-rank adapters that are not merged")
