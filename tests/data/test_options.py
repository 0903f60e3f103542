"""Options without effect are refused in one line; those that a config may have of its own are left in peace."""

import pytest

from dalle_jax.data.config import DataConfig, MixturePart, ShapesConfig, SourceKind
from dalle_jax.data.options import check_options
from dalle_jax.data.sources import open_source
from dalle_jax.errors import UserError

SHAPES, FOLDER, TARS = SourceKind.SHAPES, SourceKind.FOLDER, SourceKind.WEBDATASET
PART = MixturePart(name="a", source=FOLDER, path="x")


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (DataConfig(path="/nowhere"), "path"),
        (DataConfig(caption_templates=("a {}",)), "caption_templates"),
        (DataConfig(source=TARS, path="x", image_field="jpg"), "image_field"),
        (DataConfig(source=TARS, path="x", caption_templates=("a {}",)), "caption_templates"),
        (DataConfig(source=FOLDER, path="x", label_field="y"), "label_field"),
        (DataConfig(source=FOLDER, path="x", split="val"), "split"),
        (DataConfig(source=SourceKind.PARQUET, path="x", split="val"), "split"),
        (DataConfig(mixture=(PART,), caption_field="z"), "caption_field"),
        (DataConfig(mixture=(PART,), source=TARS), "source"),
        (DataConfig(mixture=(MixturePart(name="b", source=FOLDER, path="x", label_field="y"),)), "label_field"),
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
    ],
)
def test_options_with_an_effect_or_of_the_config_itself(config):
    check_options(config)


def test_templates_where_nothing_names_the_classes(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png())
    config = DataConfig(source=FOLDER, path=str(tmp_path), caption_templates=("a {}",))
    with pytest.raises(UserError, match="'a.png' lies in"):
        open_source(config)
