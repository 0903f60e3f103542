"""A work directory continues its own run and refuses another."""

import dataclasses
import json

import pytest

from dalle_jax.config import FORMAT_VERSION, differing_keys, to_config_dict
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.workdir import check_workdir, open_workdir, read_workdir
from dalle_jax.training.config import OptimizerConfig, TrainConfig


def config(learning_rate=1e-3, seed=0, data=1, decay_steps=None, **train):
    optimizer = OptimizerConfig(learning_rate=learning_rate, decay_steps=decay_steps)
    values = {"batch_size": 8, "num_steps": 10} | train
    return {
        "seed": seed,
        "mesh": {"data": data},
        "decoder": {"train": to_config_dict(TrainConfig(optimizer=optimizer, **values))},
    }


def test_begins_then_resumes(tmp_path):
    first = open_workdir(tmp_path / "run", config())
    assert not first.resumed
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record.keys() == {"format_version", "commit", "config"}
    assert record["format_version"] == FORMAT_VERSION and record["commit"]
    assert record["config"]["decoder"]["train"]["optimizer"]["schedule"] == "cosine"
    again = open_workdir(tmp_path / "run", config())
    assert again.resumed and again.config == first.config == read_workdir(tmp_path / "run")


def test_length_intervals_and_mesh_may_change(tmp_path):
    open_workdir(tmp_path, config())
    longer = config(num_steps=20, log_every=1, eval_every=2, checkpoint_every=3, data=8)
    assert open_workdir(tmp_path, longer).resumed
    assert read_workdir(tmp_path)["decoder"]["train"]["num_steps"] == 20
    assert open_workdir(tmp_path, config(num_steps=20, decay_steps=10)).resumed


def test_another_config_is_refused_by_key(tmp_path):
    open_workdir(tmp_path, config())
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as error:
        open_workdir(tmp_path, config(learning_rate=2e-3, seed=1, num_steps=99))
    message = str(error.value)
    assert "decoder.train.optimizer.learning_rate (0.001 there, 0.002 now)" in message
    assert "seed (0 there, 1 now)" in message
    assert "num_steps" not in message
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "is not valid JSON .*utf-8"),
        (b"[" * 200_000, "is not valid JSON .nested too deeply"),
        (b'{"format_version": %d}' % FORMAT_VERSION, "holds no config: it is damaged"),
        (b'{"format_version": %d, "config": 5}' % FORMAT_VERSION, "holds no config: it is damaged"),
    ],
)
def test_a_damaged_config_is_named(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=f"config.json {message}"):
        read_workdir(tmp_path)


def test_a_file_is_no_work_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/config.json is missing: is this a work directory"):
        read_workdir(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("micro_batches", 0), ("ema_every", 0), ("log_every", -1), ("num_steps", -2)],
)
def test_sizes_and_intervals_of_training(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be at least \d, not {value}"):
        config(**{name: value})


def test_unknown_format_is_refused(tmp_path):
    open_workdir(tmp_path, config())
    record = json.loads((tmp_path / "config.json").read_text()) | {"format_version": FORMAT_VERSION + 1}
    (tmp_path / "config.json").write_text(json.dumps(record))
    for opens in (lambda: open_workdir(tmp_path, config()), lambda: read_workdir(tmp_path)):
        with pytest.raises(UserError, match=f"format version {FORMAT_VERSION + 1}"):
            opens()


def test_comparing_writes_nothing(tmp_path):
    open_workdir(tmp_path, config())
    before = (tmp_path / "config.json").read_bytes()
    assert check_workdir(tmp_path, config(num_steps=99)) == ["decoder.train.num_steps"]
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UserError, match="of another config: "):
        check_workdir(tmp_path, config(seed=1))


def test_broken_or_foreign_folders(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_workdir(tmp_path, config())
    (tmp_path / "orphan" / "codec" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no config.json"):
        open_workdir(tmp_path / "orphan", config())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into the work directory"):
        open_workdir(tmp_path / "file" / "run", config())


def test_keys_that_only_one_side_has_differ():
    assert differing_keys({"a": {"b": 1}, "c": None}, {"a": {"b": 1, "d": 2}}) == ["a.d", "c"]


@dataclasses.dataclass(frozen=True)
class Part:
    """As it is now; an older run does not know `newer`."""

    size: int
    newer: str = "as before"


@dataclasses.dataclass(frozen=True)
class Run:
    part: Part
    parts: tuple[Part, ...] = ()
    nothing: Part | None = None


def test_fields_that_have_come_since_are_at_their_defaults(tmp_path):
    old = {"part": {"size": 1}, "parts": [{"size": 2}], "nothing": None}
    open_workdir(tmp_path, old)
    run = Run(Part(1), (Part(2),))
    assert open_workdir(tmp_path, run).resumed and check_workdir(tmp_path, run) == []
    for other in (
        Run(Part(1, "else"), (Part(2),)),
        Run(Part(1), (Part(2, "else"),)),
        Run(Part(1), (Part(2),), Part(3)),
    ):
        with pytest.raises(UserError, match="of another config"):
            check_workdir(tmp_path, other)
    (tmp_path / "config.json").unlink()
    open_workdir(tmp_path, old | {"gone": 1})
    with pytest.raises(UserError, match="gone .1 there, 'absent' now"):
        check_workdir(tmp_path, run)
