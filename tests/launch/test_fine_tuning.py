"""A published CLIP tuned as a person would: from a file of weights to a run that loads, goes on and is measured."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import clip_jax
from clip_jax import (
    Clip,
    ClipConfig,
    ClipTask,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    resnet_config,
    tower_config,
)
from clip_jax.fine_tuning import open_init_from, read_init_from, read_run
from clip_jax.tokenizers.published import CaptionTokenizer, load_tokenizer
from clip_jax.tokenizers.run_tokenizer import read_tokenizer
from clip_jax.weights.openai import openai_names
from clip_jax.weights.opening import abstract_variables
from clip_jax.weights.siglip import LOGITS, PIXELS
from configs import clip as clip_configs
from configs import clip_finetune
from dalle_jax.config import from_config_dict
from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, DataConfig, SourceKind, TokenizerConfig, TokenizerKind
from dalle_jax.data.config import TextConfig as Rows
from dalle_jax.data.readers.folder import Folder
from dalle_jax.data.tokenizer import train_tokenizer
from dalle_jax.errors import UserError
from dalle_jax.nn.layers import Activation
from dalle_jax.training.checkpoints.reader import load_params
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.optimizer import make_optimizer
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.sharding import ShardingRules
from dalle_jax.training.state import abstract_state, state_shardings, with_shardings
from dalle_jax.training.trees import named_leaves, unbox
from dalle_jax.weights import write_safetensors, write_tensors
from launch.run.config import RunConfig
from launch.run.initialization import check_init_from, find_tokenizer, initial_params

pytestmark = pytest.mark.entry

CONFIG = ClipConfig(
    16,
    VisionConfig(32, 16, tower_config(2, 64, mlp_dim=64)),
    TextConfig(49_408, 77, 49_407, tower_config(1, 64, mlp_dim=64)),
)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}
LONG = "a photograph of one very plain coloured square " * 20


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), unbox(abstract_variables(CONFIG)))


@pytest.fixture(scope="module")
def weights(variables, tmp_path_factory) -> Path:
    """A bare file with OpenAI's names."""
    path = tmp_path_factory.mktemp("published") / "tiny.safetensors"
    write_safetensors(path, write_tensors(openai_names(CONFIG), variables))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Plain squares by the folder of their colour, with a caption each; one is far too long."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(3):
            Image.new("RGB", (40, 40), tuple(min(255, c + 5 * i) for c in colour)).save(folder / name / f"{i}.png")
            (folder / name / f"{i}.txt").write_text(LONG if (name, i) == ("red", 0) else f"A {name} square, no. {i}")
    return folder


def flags(pictures: Path, num_steps: int) -> list[str]:
    train = {"batch_size": 4, "num_steps": num_steps, "log_every": 1, "eval_every": 2, "eval_batches": 1}
    return [
        "--config.data.source=folder",
        f"--config.data.path={pictures}",
        "--config.data.eval_fraction=0.4",
        "--config.clip.locked_tower=image",
        "--config.clip.train.optimizer.lr_scale=(('^text/', 0.5),)",
        *(f"--config.clip.train.{key}={value}" for key, value in train.items()),
    ]


@pytest.fixture(scope="module")
def tuned(scripts, weights, pictures, tmp_path_factory) -> Path:
    """Two steps, then the same command for a third."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    for num_steps in (2, 3):
        ended = scripts.train(f"clip_finetune.py:{weights}", workdir, *flags(pictures, num_steps))
        assert ended.code == 0, ended
    return workdir


def test_it_begins_with_the_weights_and_what_is_locked_stays(tuned, variables):
    assert saved_steps(tuned / "clip") == [2, 3]
    params, before = named_leaves(load_params(tuned / "clip").params), named_leaves(variables["params"])
    assert params.keys() == before.keys()
    for name in params:
        if name.startswith("vision"):
            np.testing.assert_array_equal(params[name], before[name], err_msg=name)
        else:
            assert np.any(params[name] != before[name]), name
            np.testing.assert_allclose(params[name], before[name], atol=1e-4, err_msg=name)
    rows = [json.loads(line) for line in (tuned / "clip" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert all(np.isfinite(value) for row in rows for value in row.values())


def test_the_run_keeps_the_published_tokenizer_and_loads(tuned):
    clip, texts = clip_jax.load(tuned), ["a red square", "Naïve &amp; plain"]
    np.testing.assert_array_equal(clip.tokenize(texts), load_tokenizer()(texts))
    with pytest.raises(UserError, match=r"caption 1 \('a photograph of one very .*\.\.\.'\) takes \d+ positions .* 77"):
        clip.encode_text([texts[0], LONG])
    cut = clip.encode_text([texts[0], LONG], truncate=True)
    np.testing.assert_array_equal(cut, clip_jax.load(tuned, truncate=True).encode_text([texts[0], LONG]))
    np.testing.assert_allclose(cut[0], clip.encode_text(texts)[0], rtol=1e-5, atol=1e-6)


def test_the_run_is_measured(scripts, tuned, pictures, tmp_path):
    ended = scripts("evaluate", f"--model={tuned}", "--suite=zero_shot", f"--data={pictures}", f"--out={tmp_path}")
    assert ended.code == 0, ended
    (row,) = json.loads((tmp_path / "zero_shot.json").read_text())["results"]
    assert row["pictures"] == 12 and row["classes"] == 4 and 0 <= row["accuracy"] <= 1


def run_config(weights: Path | str | None, **changes) -> RunConfig:
    """The config of `clip_finetune.py` on drawn scenes."""
    run = from_config_dict(RunConfig, clip_finetune.get_config(str(weights) if weights else ""))
    return dataclasses.replace(run, data=DataConfig(source=SourceKind.SHAPES), **changes)


def test_a_run_of_a_run_reads_captions_as_the_first_one(tuned, weights, tmp_path):
    run = dataclasses.replace(run_config(weights), init_from=str(tuned))
    assert find_tokenizer(run, epath.Path(tmp_path)).fingerprint == load_tokenizer().fingerprint
    assert initial_params(run, "decoder") == epath.Path(tuned) / "decoder"
    begin = initial_params(run, "clip")
    assert begin is not None and begin.func is read_run and begin.args[1] == str(tuned)


def test_batches_hold_the_published_ids(pictures):
    tokenizer, source = load_tokenizer(context_length=20), Folder(str(pictures))
    batches = Batches(source, batch_size=12, image_size=32, augment=Augment.CLIP, seed=0, tokenizer=tokenizer,
                      text=Rows(20, end=True))  # fmt: skip
    captions = [f"A {name} square, no. {i}" for name in COLOURS for i in range(3)]
    captions[0] = LONG
    wanted = tokenizer(captions, truncate=True).tolist()
    assert sorted(batches[0]["text"].tolist()) == sorted(wanted)
    assert batches.captions_cut == 1


def test_weights_saved_from_a_run_bring_its_own_tokenizer(variables, tmp_path):
    trained = train_tokenizer(["a red square", "a blue circle", "nine green triangles"] * 3, 60)
    text = dataclasses.replace(CONFIG.text, vocab_size=60, end_id=3)
    params = {**variables["params"], "text": {**variables["params"]["text"]}}
    params["text"]["token_embedding"] = {"embedding": params["text"]["token_embedding"]["embedding"][:60]}
    clip_jax.save(Clip(dataclasses.replace(CONFIG, text=text), params, list), tmp_path / "saved", format="open_clip")
    trained.save(tmp_path / "saved" / "tokenizer.model")
    run = run_config(tmp_path / "saved")
    assert run.tokenizer.kind is TokenizerKind.TRAINED
    assert find_tokenizer(run, epath.Path(tmp_path)).model == trained.model
    wrong = dataclasses.replace(run, tokenizer=dataclasses.replace(run.tokenizer, kind=TokenizerKind.PUBLISHED))
    with pytest.raises(UserError, match="kind is 'published': set it to 'trained'"):
        find_tokenizer(wrong, epath.Path(tmp_path))


def resnet() -> ClipConfig:
    return dataclasses.replace(CONFIG, vision=resnet_config(32, (1, 1, 1, 1), 4, head_dim=64))


def siglip() -> ClipConfig:
    tower = tower_config(1, 64, mlp_dim=64, activation=Activation.GELU_TANH, norm_epsilon=1e-6)
    text = TextConfig(60, 16, 1, tower, TextTower.SIGLIP)
    return ClipConfig(64, VisionConfig(32, 16, tower, VisionTower.SIGLIP, **PIXELS), text, **LOGITS)


@pytest.mark.parametrize(
    ("model", "format", "augment"), [(resnet, "open_clip", Augment.CLIP), (siglip, "hf", Augment.SQUARE)]
)
def test_the_other_families_begin_a_run(tmp_path, model, format, augment):
    """On a mesh, statistics of batches as well as parameters."""
    config, rng = model(), np.random.default_rng(0)
    wanted = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), unbox(abstract_variables(config)))
    rest = dict(wanted)
    clip_jax.save(Clip(config, rest.pop("params"), list, model_state=rest), tmp_path, format=format)
    stage = from_config_dict(RunConfig, clip_finetune.get_config(str(tmp_path))).clip
    assert stage.augment is augment and stage.model != config  # its precision
    boxed = abstract_state(ClipTask(stage), make_optimizer(stage.train.optimizer, 1), keep_ema=False)
    state = with_shardings(boxed, state_shardings(boxed, make_mesh(MeshConfig(2, 2, 2)), ShardingRules()))
    loaded = read_init_from(stage.model, tmp_path, state)
    found = named_leaves({"params": loaded.params, **loaded.model_state})
    assert found.keys() == named_leaves(wanted).keys()
    for name, array in named_leaves(wanted).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].sharding.mesh.size == 8


def test_another_model_is_refused_with_what_differs(weights, tmp_path):
    run = run_config(None, init_from=str(weights))
    with pytest.raises(UserError) as caught:
        check_init_from(run, epath.Path(tmp_path), ["clip"])
    message = str(caught.value)
    for part in ("embed_dim (16 there, 512 here)", "vision.transformer.num_layers (2 there, 12 here)",
                 "vision.image_size (32 there, 224 here)", f"clip_finetune.py:{weights}"):  # fmt: skip
        assert part in message
    assert "dtype" not in message and "remat" not in message


def test_a_folder_that_has_another_activation(variables, tmp_path):
    clip_jax.save(Clip(CONFIG, variables["params"], load_tokenizer()), tmp_path)
    text = dataclasses.replace(CONFIG.text.transformer, activation=Activation.RELU)
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, transformer=text))
    with pytest.raises(UserError, match="its activation is 'quick_gelu', not 'relu'"):
        open_init_from(config, tmp_path)


def test_weights_of_a_clip_are_no_decoder(scripts, weights, tmp_path):
    ended = scripts.train("quickstart.py:tiny", tmp_path / "run", f"--config.init_from={weights}")
    assert ended.code == 2 and "holds a CLIP, and the config trains a codec too" in ended.err, ended
    assert not (tmp_path / "run").exists()


def test_training_from_nothing_with_the_published_tokenizer(scripts, tmp_path):
    run = from_config_dict(RunConfig, clip_configs.get_config("vit_b32"))
    tokenizer = find_tokenizer(run, epath.Path(tmp_path))
    assert isinstance(tokenizer, CaptionTokenizer) and tokenizer.end_id == run.clip.model.text.end_id
    sizes = ["--config.tokenizer.vocab_size=49408", "--config.clip.model.text.vocab_size=49408"]
    arguments = ["--dry_run", "--config.tokenizer.kind=published", *sizes]
    refused = scripts.train("clip.py:tiny", tmp_path / "run", *arguments)
    assert refused.code == 2 and "ends captions with 49407" in refused.err, refused
    ended = scripts.train("clip.py:tiny", tmp_path / "run", *arguments, "--config.clip.model.text.end_id=49407")
    assert ended.code == 0, ended


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": TokenizerKind.PUBLISHED, "bpe_dropout": 0.1}, "bpe_dropout must be 0"),
        ({"kind": TokenizerKind.TRAINED, "bpe_dropout": 1.0}, "bpe_dropout must be in"),
    ],
)
def test_tokenizer_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(49_408, 77, **changes)


def test_a_published_tokenizer_is_clips_alone():
    from configs import quickstart

    config = quickstart.get_config("tiny").to_dict()
    config["tokenizer"] |= {"kind": "published", "bpe_dropout": 0.0}
    with pytest.raises(UserError, match="kind is 'published', which is CLIP's alone"):
        from_config_dict(RunConfig, config)


def test_a_tokenizer_that_is_not_that_of_the_weights(weights, tmp_path):
    tokenizer = load_tokenizer()
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)
    assert read_tokenizer_of(weights, tmp_path).fingerprint == tokenizer.fingerprint
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join([*lines[:9], lines[10], lines[9], *lines[11:], ""]))
    with pytest.raises(UserError, match="is not the tokenizer that"):
        read_tokenizer_of(weights, tmp_path)


def read_tokenizer_of(weights: Path, folder: Path):
    run = run_config(weights)
    run = dataclasses.replace(run, tokenizer=dataclasses.replace(run.tokenizer, path=str(folder)))
    return find_tokenizer(run, epath.Path(folder / "none"))


def test_reading_a_run_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer at"):
        read_tokenizer(tmp_path, context_length=77)
