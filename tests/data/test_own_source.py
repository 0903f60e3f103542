"""A kind of data of one's own: a `Source` and an entry in a table, and a config that names it is read like others."""

import numpy as np
import pytest

from dalle_jax.config import from_config_dict, to_config_dict
from dalle_jax.data.account import in_lines
from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, DataConfig
from dalle_jax.data.options import check_options
from dalle_jax.data.records import Record, Source
from dalle_jax.data.source_types import SOURCES, SourceType, stored_path
from dalle_jax.data.sources import open_source, open_splits
from dalle_jax.errors import UserError


class Greys(Source):
    """So many squares, each a little brighter than the one before it."""

    def __init__(self, count: int):
        self.name, self._count = f"{count} greys", count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return Record(np.full((16, 16, 3), index, np.uint8), (f"grey of level {index}",), self.key(index))

    def key(self, index):
        return f"{index:03}"


@pytest.fixture(autouse=True)
def greys(monkeypatch):
    kind = SourceType(lambda config, split: Greys(int(stored_path(config, split))), unused=("image_field",))
    monkeypatch.setitem(SOURCES, "greys", kind)


CONFIG = DataConfig(source="greys", path="200", eval_fraction=0.1, image_size=16)


def test_a_config_names_it_and_a_part_is_held_out():
    assert from_config_dict(DataConfig, to_config_dict(CONFIG)) == CONFIG
    sources = open_splits(CONFIG)
    keys = {split: {source.key(i) for i in range(len(source))} for split, source in sources.items()}
    assert not keys["train"] & keys["eval"] and len(keys["train"] | keys["eval"]) == 200
    assert 10 <= len(keys["eval"]) <= 30
    assert "200 greys" in in_lines(CONFIG, sources)


def test_it_makes_batches():
    batches = Batches(open_source(CONFIG), batch_size=4, image_size=16, augment=Augment.NONE, seed=0)
    levels = np.asarray(batches[0]["image"]).reshape(4, -1)
    assert (levels == levels[:, :1]).all() and len(set(levels[:, 0])) == 4


def test_what_it_has_no_use_for_is_refused_as_everywhere():
    with pytest.raises(UserError, match="image_field='x' has no effect: config.data.source is 'greys'"):
        check_options(DataConfig(source="greys", path="9", image_field="x"))
    with pytest.raises(UserError, match="has no split 'unseen'"):
        open_source(CONFIG, "unseen")


def test_one_that_is_not_there_is_named():
    with pytest.raises(UserError, match="config.data.source='grays', did you mean 'greys'.*webdataset"):
        open_source(DataConfig(source="grays"))
