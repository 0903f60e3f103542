"""A stage of one's own: a dataclass, a task and an entry in a table, in the config file that trains it."""

import json

import numpy as np

from dalle_jax.run_record import read_run
from dalle_jax.training.checkpoints.workdir import saved_steps
from tests.launch.conftest import ROOT

CONFIG = ROOT / "tests" / "launch" / "own_stage.py"


def test_it_is_trained_gone_on_with_and_looked_after(scripts, tmp_path):
    run = tmp_path / "run"
    planned = scripts.train(CONFIG, run, "--dry_run")
    assert planned.code == 0 and "brightness: 4 parameters, batch 8, 2 steps" in planned.out, planned
    ended = scripts.train(CONFIG, run, "--config.brightness.threshold=0.25")
    assert ended.code == 0, ended.err
    assert saved_steps(run / "brightness") == [2] and (run / "brightness" / "previews" / "step_0000002.png").exists()
    rows = [json.loads(line) for line in (run / "brightness" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([row["eval/loss"] for row in rows if "eval/loss" in row]).all()
    assert read_run(run).stages == ("brightness",) and read_run(run).config["brightness"]["threshold"] == 0.25

    longer = scripts.train(CONFIG, run, "--config.brightness.threshold=0.25", "--config.brightness.train.num_steps=3")
    assert longer.code == 0 and saved_steps(run / "brightness")[-1] == 3, longer.err
    assert "all of brightness is trained" in scripts("status", str(run)).out
    assert scripts("plot", str(run), f"--out={tmp_path / 'curves.png'}").code == 0


def test_what_is_misspelt_in_it_is_named(scripts, tmp_path):
    wrong = scripts.train(CONFIG, tmp_path / "run", "--config.brightness.train.num_steps=none")
    assert wrong.code == 2 and "num_steps" in wrong.err
    other = scripts.train(CONFIG, tmp_path / "run", "--stages=brigthness")
    assert other.code == 2 and "the config has no stage 'brigthness' (it has brightness)" in other.err


def test_a_run_without_a_stage_is_called_so(scripts, tmp_path):
    run = tmp_path / "run"
    assert scripts.train(CONFIG, run, "--config.brightness.train.num_steps=1").code == 0
    drawn = scripts("generate", f"--workdir={run}", "--prompt=a cat", f"--out={tmp_path / 'out'}")
    assert drawn.code == 2 and "has no decoder: train one" in drawn.err
