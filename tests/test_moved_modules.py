"""Names of modules that are older than this version: each gives the module of today, with a warning."""

import importlib
import warnings

import pytest

from dalle_jax.moved_modules import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_module_of_today(old):
    with pytest.warns(FutureWarning, match=f"{old} is {MOVED[old]} now"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MOVED[old])
    assert module.__name__ == module.__spec__.name == MOVED[old]


def test_names_of_today_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for name in set(MOVED.values()):
            importlib.import_module(name)


def test_packages_that_were_modules_hold_what_these_held():
    from clip_jax.losses import contrastive_loss  # noqa: F401
    from clip_jax.tokenizers import ClipTokenizer, load_tokenizer  # noqa: F401
    from clip_jax.weights import is_published, open_published  # noqa: F401
    from dalle_jax.data.encoded import Encoded, read_manifest  # noqa: F401
