"""What a person is told of the data at the start of a run."""

import numpy as np
import pytest

from dalle_jax.data.account import accounts, in_lines
from dalle_jax.data.config import Augment, DataConfig, HeldOutBy, MixturePart, ShapesConfig, SourceKind
from dalle_jax.data.encoded.folder import Job, write_manifest
from dalle_jax.data.encoded.writer import Writer
from dalle_jax.data.left_out import Tally, in_words
from dalle_jax.data.records import BadReason, BadSample, Encoding
from dalle_jax.data.sources import open_splits


def lines(config):
    return in_lines(config, open_splits(config)).splitlines()


@pytest.fixture
def tars(write_tar, png):
    captions = {f"{i}.txt": b"x" for i in range(12)}
    return write_tar("x.tar", {f"{i}.png": png() for i in range(20)} | captions | {"a.md": b"", "b.md": b"", ".c": b""})


def test_tars(tars):
    config = DataConfig(source=SourceKind.WEBDATASET, path=tars, eval_fraction=0.2)
    held_out = len(open_splits(config)["eval"])
    share = f"{held_out} held out ({held_out / 20:.2%}; eval_fraction=0.2)"
    assert lines(config) == [
        f"data: 20 images, 12 with captions, {share}: webdataset {tars}",
        "data: left out: members of other extensions: 2, such as a.md in x.tar",
        "data: left out: members whose names begin with a dot: 1, .c in x.tar",
    ]
    by_key = DataConfig(source=SourceKind.WEBDATASET, path=tars, eval_fraction=0.2, held_out_by=HeldOutBy.KEY)
    assert "eval_fraction=0.2, by the key alone)" in lines(by_key)[0]
    assert ", none held out: " in lines(DataConfig(source=SourceKind.WEBDATASET, path=tars, eval_fraction=0.0))[0]


def test_splits_of_their_own(tmp_path, write_tar, png):
    for split, count in (("train", 5), ("val", 2)):
        write_tar(f"{split}.tar", {f"{i}.png": png() for i in range(count)} | {f"{split}.md": b""})
    path = f"{tmp_path}/{{split}}.tar"
    config = DataConfig(source=SourceKind.WEBDATASET, path=path, eval_split="val")
    names = " and ".join(f"webdataset {tmp_path}/{split}.tar" for split in ("train", "val"))
    first, *rest = lines(config)
    assert first == f"data: 7 images, 0 with captions, 2 held out (28.57%; eval_split=val): {names}"
    assert [line.rpartition(", ")[2] for line in rest] == ["train.md in train.tar", "val.md in val.tar"]
    shapes = DataConfig(shapes=ShapesConfig(data_dir=str(tmp_path / "shapes"), num_train=6, num_eval=2))
    assert lines(shapes) == [
        "data: 8 images, 8 with captions, 2 held out (25.00%; a split of its own): shapes/train and shapes/eval"
    ]


def test_parts_of_a_mixture(tmp_path, tars, png):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(png())
    config = DataConfig(
        mixture=(
            MixturePart(name="web", source=SourceKind.WEBDATASET, path=tars, eval_fraction=1e-9),
            MixturePart(name="mine", source=SourceKind.FOLDER, path=str(tmp_path / "folder"), eval_fraction=0.0),
        )
    )
    web, mine = accounts(config, open_splits(config))
    assert (web.part, web.samples, web.held_out, web.captioned) == ("web", 20, 1, 12) and len(web.left_out) == 2
    assert (mine.part, mine.samples, mine.held_out, mine.rule) == ("mine", 1, 0, "")
    assert all(line.startswith("data, part 'web': ") for line in web.lines())


def test_encoded(tmp_path, list_source):
    source = list_source(6)
    source.records[2] = BadSample(BadReason.TRUNCATED)
    job = Job("train", source, Augment.NONE, 1, 0, Encoding("codec", 256, 2, 8), 4, 10_000)
    writer = Writer(
        job, str(tmp_path), lambda images: np.zeros((len(images), 4), np.int32),
        batch_size=4, workers=0, max_bad_fraction=1.0,
    )  # fmt: skip
    for number in range(job.num_shards):
        writer.write(number)
    write_manifest([job], str(tmp_path), "commit")
    assert lines(DataConfig(source=SourceKind.ENCODED, path=str(tmp_path))) == [
        f"data: 5 encoded images, 5 with captions, none held out: encoded {tmp_path} train",
        "data: left out: samples that were truncated when they were encoded: 1, "
        "one in train/00000-of-00002.array_record",
    ]


def test_what_would_have_to_be_read_is_not_counted(list_source):
    config = DataConfig(source=SourceKind.FOLDER, path="x", eval_fraction=0.0)
    assert ", captions not counted, " in in_lines(config, {"train": list_source(3)})


def test_names_are_shown_as_a_terminal_can(capsys):
    tally = Tally()
    tally.add("files", "a\n\udcff☃.jpg", 2)
    print(*in_words(tally.found()))
    assert capsys.readouterr().out == "files: 2, such as a\\n\\udcff\\u2603.jpg\n"
