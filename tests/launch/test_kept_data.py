"""A run that goes on with other data says so, and holds out what it has held out so far."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from dalle_jax.data.config import DataConfig, HeldOutBy, MixturePart, SourceKind
from dalle_jax.data.readers.webdataset_writer import write_shard
from dalle_jax.data.sources import open_source, open_splits
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.workdir import check_workdir, open_workdir, read_workdir
from launch.run.config import held_out_as_begun
from launch.run.data_record import FILE, fingerprints, keep_data
from tests.data.conftest import encoded_image

PNG = encoded_image(np.zeros((4, 4, 3), np.uint8))


def write_tar(path: Path, count: int, caption: bytes = b"a caption") -> None:
    write_shard(path, [{"key": b"%d" % i, "png": PNG, "txt": caption} for i in range(count)])


@pytest.fixture
def tars(tmp_path) -> DataConfig:
    """Twenty tars of the keys 0 to 4."""
    (tmp_path / "data").mkdir()
    for i in range(20):
        write_tar(tmp_path / "data" / f"{i:02}.tar", 5)
    return DataConfig(source=SourceKind.WEBDATASET, path=str(tmp_path / "data" / "*.tar"), eval_fraction=0.3)


@pytest.fixture
def workdir(tmp_path) -> epath.Path:
    return epath.Path(tmp_path / "W")


def start(workdir, config, caplog) -> list[str]:
    """What a start says of its data."""
    caplog.clear()
    keep_data(workdir, fingerprints(open_splits(config)))
    return [record.getMessage() for record in caplog.records]


def test_other_data_are_warned_of_once(workdir, tars, tmp_path, caplog):
    assert start(workdir, tars, caplog) == []
    first = (workdir / FILE).read_text()
    train, held_out = open_splits(tars).values()
    assert {name: facts["samples"] for name, facts in json.loads(first).items()} == {
        "train": len(train), "eval": len(held_out)
    }  # fmt: skip
    modified = (workdir / FILE).stat().mtime
    assert start(workdir, tars, caplog) == [] and (workdir / FILE).stat().mtime == modified
    write_tar(tmp_path / "data" / "more.tar", 3)
    train, _ = open_splits(tars).values()
    (said,) = start(workdir, tars, caplog)
    assert f"train has {len(train)} samples instead of {100 - len(held_out)} (fingerprint " in said
    assert str(workdir) in said and start(workdir, tars, caplog) == []
    (tmp_path / "data" / "more.tar").unlink()
    assert len(start(workdir, tars, caplog)) == 1
    now = json.loads((workdir / FILE).read_text())
    assert [facts["fingerprint"] for facts in now.values()] == [
        facts["fingerprint"] for facts in json.loads(first).values()
    ]


def test_the_same_number_of_other_samples(workdir, tars, tmp_path, caplog):
    start(workdir, tars, caplog)
    for path in (tmp_path / "data").iterdir():
        write_tar(path, 5, b"another caption, and longer")
    (said,) = start(workdir, tars, caplog)
    assert "samples as before, but others (fingerprint " in said and "train has" in said and "eval has" in said


def test_parts_of_a_mixture_are_told_apart(workdir, tars, tmp_path, caplog):
    write_tar(tmp_path / "b.tar", 4)
    parts = (
        MixturePart(name="a", source=SourceKind.WEBDATASET, path=tars.path, eval_fraction=0.3),
        MixturePart(name="b", source=SourceKind.WEBDATASET, path=str(tmp_path / "b.tar"), eval_fraction=0.0),
    )
    config = DataConfig(mixture=parts)
    assert start(workdir, config, caplog) == []
    assert json.loads((workdir / FILE).read_text()).keys() == {"train/a", "train/b", "eval/a"}
    write_tar(tmp_path / "b.tar", 6)
    (said,) = start(workdir, config, caplog)
    assert "): train/b has 6 samples instead of 4 (" in said and "/a" not in said


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"train": 5}', b'{"train": {}}', b"\xff"])
def test_a_damaged_file_is_no_error(workdir, tars, caplog, damage):
    start(workdir, tars, caplog)
    whole = json.loads((workdir / FILE).read_text())
    (workdir / FILE).write_bytes(damage)
    start(workdir, tars, caplog)
    assert {name: facts["samples"] for name, facts in json.loads((workdir / FILE).read_text()).items()} == {
        name: facts["samples"] for name, facts in whole.items()
    }


def config_of(data: DataConfig) -> dict:
    return {"seed": 0, "data": dataclasses.asdict(data)}


def as_earlier_code_wrote(workdir: epath.Path) -> None:
    """Takes the keys out that the config did not have at commit 860d61d."""
    record = json.loads((workdir / "config.json").read_text())
    for section in (record["config"]["data"], *record["config"]["data"]["mixture"]):
        del section["held_out_by"], section["key"]
    (workdir / "config.json").write_text(json.dumps(record))


def keys(config: DataConfig, split: str) -> set[str]:
    source = open_source(config, split)
    return {source.key(i) for i in range(len(source))}


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_of_earlier_code_keeps_what_it_holds_out(workdir, tars, mixed):
    part = MixturePart(name="a", source=SourceKind.WEBDATASET, path=tars.path, eval_fraction=0.3)
    config = DataConfig(mixture=(part,)) if mixed else tars
    open_workdir(workdir, config_of(config))
    assert held_out_as_begun(config, workdir) == config
    as_earlier_code_wrote(workdir)
    with pytest.raises(UserError, match="another config: data"):
        check_workdir(workdir, config_of(config))
    kept = held_out_as_begun(config, workdir)
    assert check_workdir(workdir, config_of(kept)) == []
    (part,) = kept.mixture or (kept,)
    assert part.held_out_by is HeldOutBy.KEY
    assert len(keys(kept, "eval")) < 5 < len(keys(config, "eval"))  # the keys of the tars, and not of one of them
    data = read_workdir(workdir)["data"]
    assert [section["key"] for section in (data, *data["mixture"])] == ["first_dot"] * (1 + mixed)


def test_a_new_folder_has_the_default(workdir, tars):
    assert held_out_as_begun(tars, workdir) is tars
