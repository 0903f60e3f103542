"""The flag is set once, added to what is there, and missed where it is not set."""

import os

from dalle_jax.training.determinism import set_deterministic, warn_unless_deterministic


def test_flag_is_added_once(monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    warn_unless_deterministic("cpu")
    assert not capsys.readouterr().err
    warn_unless_deterministic("gpu")
    assert "XLA_FLAGS" in capsys.readouterr().err
    for _ in range(2):
        set_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_other=1 --xla_gpu_deterministic_ops=true"
    warn_unless_deterministic("gpu")
    assert not capsys.readouterr().err
