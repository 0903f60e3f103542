"""The flag is set once, added to what is there, and missed where it is not set."""

import os

from dalle_jax.training.parallel.determinism import warn_unless_deterministic
from launch.run.process_settings import set_deterministic


def test_flag_is_added_once(monkeypatch, caplog):
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    warn_unless_deterministic("cpu")
    assert not caplog.records
    warn_unless_deterministic("gpu")
    (record,) = caplog.records
    assert "XLA_FLAGS" in record.getMessage()
    for _ in range(2):
        set_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_other=1 --xla_gpu_deterministic_ops=true"
    warn_unless_deterministic("gpu")
    assert len(caplog.records) == 1
