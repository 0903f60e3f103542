"""Options without effect are refused in one line; those that a config may have of its own are left in peace."""

import dataclasses

import pytest

from dalle_jax.data.config import DataConfig, HeldOutBy, MixturePart, ShapesConfig, SourceKind
from dalle_jax.data.options import check_opened, check_options
from dalle_jax.data.sources import open_source, open_splits
from dalle_jax.errors import UserError

SHAPES, FOLDER, TARS = SourceKind.SHAPES, SourceKind.FOLDER, SourceKind.WEBDATASET
BY_KEY = HeldOutBy.KEY
LABELS = MixturePart(name="b", source=FOLDER, path="x", label_field="y")
PART = MixturePart(name="a", source=FOLDER, path="x")


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (DataConfig(path="/nowhere"), "path"),
        (DataConfig(caption_templates=("a {}",)), "caption_templates"),
        (DataConfig(source=TARS, path="x", image_field="jpg"), "image_field"),
        (DataConfig(source=TARS, path="x", caption_templates=("a {}",)), "caption_templates"),
        (DataConfig(source=FOLDER, path="x", label_field="y"), "label_field"),
        (DataConfig(source=TARS, path="x", split="val"), "split"),
        (DataConfig(eval_fraction=0.1), "eval_fraction"),
        (DataConfig(eval_fraction=0.0), "eval_fraction"),
        (DataConfig(held_out_by=BY_KEY), "held_out_by"),
        (DataConfig(source=FOLDER, path="x", held_out_by=BY_KEY), "held_out_by"),
        (DataConfig(source=TARS, path="x", held_out_by=BY_KEY, eval_fraction=0.0), "held_out_by"),
        (DataConfig(source=TARS, path="{split}", held_out_by=BY_KEY, eval_split="b"), "held_out_by"),
        (DataConfig(source=FOLDER, path="{split}", eval_split="val", eval_fraction=0.1), "eval_fraction"),
        (DataConfig(source=SourceKind.PARQUET, path="x", split="val"), "split"),
        (DataConfig(mixture=(PART,), caption_field="z"), "caption_field"),
        (DataConfig(mixture=(PART,), source=TARS), "source"),
        (DataConfig(mixture=(LABELS,)), "label_field"),
    ],
)
def test_an_option_without_effect(config, option):
    with pytest.raises(UserError, match=f"config.data.{option}=.* has no effect: "):
        check_options(config)


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(split="unseen"),
        DataConfig(source=SourceKind.TFDS, path="x", split="train[:9%]", caption_templates=("a {}",), label_field="y"),
        DataConfig(source=FOLDER, path="x/{split}", split="a", eval_split="b", caption_field="z", image_field="y"),
        DataConfig(source=TARS, path="x", caption_field="z", shapes=ShapesConfig(num_train=5), eval_fraction=0.1),
        DataConfig(source=SourceKind.ENCODED, path="x", caption_templates=("a {}",), caption_field="z"),
        DataConfig(mixture=(PART,), image_size=8),
        DataConfig(source=FOLDER, path="x/{split}", eval_split="b", eval_fraction=0.0),
        DataConfig(source=FOLDER, path="x", split="val"),  # which it may name: known when it is opened
    ],
)
def test_options_with_an_effect_or_of_the_config_itself(config):
    check_options(config)


ENCODED = DataConfig(source=SourceKind.ENCODED, path="x", caption_field="z", eval_fraction=0.1)
OF_THE_FILE = DataConfig(source=TARS, path="{split}", eval_split="val", eval_fraction=0.1, held_out_by=BY_KEY)


@pytest.mark.parametrize(
    ("config", "given", "refused"),
    [
        (DataConfig(path="x"), {"source"}, ""),
        (DataConfig(path="x"), {"source", "path"}, "path"),
        (ENCODED, {"source", "path"}, ""),
        (ENCODED, {"source", "caption_field"}, "caption_field"),
        (ENCODED, {"eval_fraction"}, "eval_fraction"),
        (DataConfig(source=TARS, path="x", shapes=ShapesConfig(num_train=5)), {"shapes"}, ""),  # scripts always say it
        (DataConfig(source=TARS, path="x", shapes=ShapesConfig(num_train=5)), {"source"}, ""),
        (OF_THE_FILE, {"source", "path"}, ""),
        (OF_THE_FILE, {"eval_split"}, ""),
        (OF_THE_FILE, {"eval_fraction"}, "eval_fraction"),
        (OF_THE_FILE, {"held_out_by", "source"}, "held_out_by"),
    ],
)
def test_what_the_command_line_names_is_meant_and_what_it_replaces_is_not(config, given, refused):
    if not refused:
        check_options(config, given)
        return
    with pytest.raises(UserError, match=f"config.data.{refused}.* has no effect: "):
        check_options(config, given)


def test_what_turns_out_to_have_no_effect(tmp_path, write_tar, png):
    fields = DataConfig(source=TARS, path=write_tar("a.tar", {"1.png": png(), "1.txt": b"x"}), eval_fraction=0.0,
                        caption_field="title")  # fmt: skip
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.png").write_bytes(png())
        (tmp_path / split / "metadata.csv").write_text("file_name,text\n1.png,one\n")
    share = DataConfig(source=FOLDER, path=str(tmp_path), eval_fraction=0.1)
    part = MixturePart(name="a", source=FOLDER, path=str(tmp_path), eval_fraction=0.1)
    for config, message in (
        (fields, "caption_field='title' has no effect: webdataset .*a.tar has no .json members"),
        (share, "eval_fraction=0.1 has no effect: .* has splits of its own; config.data.split='all' reads them as one"),
        (DataConfig(mixture=(part,)), "eval_fraction=0.1 has no effect: .* has splits of its own"),
    ):
        with pytest.raises(UserError, match=message):
            check_opened(config, open_splits(config))
    for config in (DataConfig(source=FOLDER, path=str(tmp_path)), dataclasses.replace(share, split="all")):
        check_opened(config, open_splits(config))
    check_opened(share, open_splits(share), {"source", "path"})
    share = dataclasses.replace(share, eval_split="test")  # by the command line, whose config's file has the share
    check_opened(share, open_splits(share), {"eval_split"})


def test_values_are_shown_as_they_are_written():
    with pytest.raises(UserError, match="config.data.held_out_by='key' has no effect: "):
        check_options(DataConfig(held_out_by=BY_KEY))


def test_open_source_refuses_too():
    for open_it in (lambda **begun: open_source(DataConfig(path="mine/*.tar"), **begun),
                    lambda **begun: open_source(DataConfig(mixture=(LABELS,)), **begun)):  # fmt: skip
        with pytest.raises(UserError, match="config.data.(path|label_field)=.* has no effect: "):
            open_it()
    with pytest.raises(UserError, match="'x' is not a folder"):
        open_source(DataConfig(mixture=(LABELS,)), as_begun=True)


def test_templates_where_nothing_names_the_classes(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    config = DataConfig(source=FOLDER, path=str(tmp_path), caption_templates=("a {}",))
    with pytest.raises(UserError, match="'a.png' lies in"):
        open_source(config)
