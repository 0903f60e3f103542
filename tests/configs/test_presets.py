"""Every config builds; the published decoder has its published numbers and its shardings on 256 devices."""

import collections
import importlib.util
import math
import os
import re
from pathlib import Path

import pytest

from dalle_jax.config import from_config_dict, to_config_dict
from dalle_jax.decoder.model import abstract_params
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import Pattern
from dalle_jax.training.config import Schedule
from dalle_jax.training.parallel.sharding import ShardingRules, describe
from launch.run.config import EfficiencyConfig, RunConfig

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("decoder_12b_shardings.txt")
PRESETS = [
    ("decoder_12b", ""),
    ("decoder_1b", ""),
    ("decoder_1b", "tiny"),
    ("codec_dalle", ""),
    ("codec_dalle", "tiny"),
    ("quickstart", ""),
    ("quickstart", "tiny"),
    ("emoji", ""),
    ("emoji", "cpu"),
    ("emoji", "tiny"),
    ("clip", "vit_b32"),
    ("clip", "rn50"),
    ("clip", "tiny"),
    ("clip", "tiny_resnet"),
    ("clip", "siglip_b16"),
    ("clip", "siglip_tiny"),
    ("chaos", ""),
    ("chaos", "short"),
    ("clip_finetune", ""),
    ("clip_cifar10", ""),
    ("clip_cifar10", "gpu"),
]


def load(name: str, arg: str = ""):
    spec = importlib.util.spec_from_file_location(f"config_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def test_every_config_is_listed():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert files == {name for name, _ in PRESETS} | {"efficiency"}


@pytest.mark.parametrize("arg", ["", "gpu", "resnet", "tiny"])
def test_the_experiment_of_several_runs_becomes_dataclasses_and_back(arg):
    experiment = from_config_dict(EfficiencyConfig, load("efficiency", arg))
    assert from_config_dict(EfficiencyConfig, to_config_dict(experiment)) == experiment


@pytest.mark.parametrize(("name", "arg"), PRESETS)
def test_config_becomes_dataclasses_and_back(name, arg):
    config = load(name, arg)
    run = from_config_dict(RunConfig, config)
    assert from_config_dict(RunConfig, to_config_dict(run)) == run
    assert (ROOT / "configs" / f"{name}.py").read_text().startswith(('"""', 'r"""'))


@pytest.mark.parametrize("name", sorted({name for name, _ in PRESETS}))
def test_an_unknown_argument_is_refused(name):
    with pytest.raises(UserError, match="huge"):
        load(name, "huge")


def test_published_training_of_the_decoder():
    run = from_config_dict(RunConfig, load("decoder_12b"))
    model, train, optimizer = run.decoder.model, run.decoder.train, run.decoder.train.optimizer
    assert (model.num_layers, model.num_heads, model.head_dim, model.embed_dim) == (64, 62, 64, 3968)
    assert (model.text_length, model.text_vocab_size, model.grid_size, model.codebook_size) == (256, 16384, 32, 8192)
    assert model.conv_kernel == 11 and model.schedule[-1] is Pattern.CONV and model.text_loss_weight == 1 / 8
    assert (train.batch_size, train.num_steps, train.ema_decay, train.ema_every) == (1024, 430_000, 0.99, 25)
    assert (optimizer.b1, optimizer.b2, optimizer.epsilon, optimizer.weight_decay) == (0.9, 0.96, 1e-8, 0.045)
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.halvings) == (4.5e-4, 5000, 5)
    assert (optimizer.clip_norm, optimizer.second_moment_clip) == (4.0, 5.0)
    assert optimizer.schedule is Schedule.PLATEAU and run.tokenizer.bpe_dropout == 0.1


@pytest.mark.parametrize(
    ("names", "b2", "epsilon"),
    [
        (("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64"), 0.999, 1e-8),
        (("vit_b32", "vit_b16", "vit_l14", "vit_l14_336"), 0.98, 1e-6),
    ],
)
def test_published_training_of_clip(names, b2, epsilon):
    """Radford et al. 2021, Tables 18 to 20."""
    rates = {"rn50x16": 4e-4, "rn50x64": 3.6e-4, "vit_l14": 4e-4, "vit_l14_336": 2e-5}
    for name in names:
        stage = from_config_dict(RunConfig, load("clip", name)).clip
        optimizer = stage.train.optimizer
        assert (optimizer.b1, optimizer.b2, optimizer.epsilon, optimizer.weight_decay) == (0.9, b2, epsilon, 0.2)
        assert optimizer.learning_rate == rates.get(name, 5e-4) and optimizer.warmup_steps == 2000
        assert optimizer.schedule is Schedule.COSINE
        assert stage.train.batch_size == 32_768 and stage.model.max_logit_scale == 100
        assert stage.train.num_steps == (12_207 if name == "vit_l14_336" else 390_625)
        text = stage.model.text
        assert (text.vocab_size, text.context_length, text.transformer.num_layers) == (49_408, 77, 12)


def shardings() -> dict[str, tuple[tuple[int, ...], tuple[tuple[str, ...], ...]]]:
    """Shape and mesh axes of each dimension of every parameter of the published decoder."""
    run = from_config_dict(RunConfig, load("decoder_12b"))
    table = {}
    for name, (shape, spec) in describe(abstract_params(run.decoder.model), ShardingRules.of(run.mesh)).items():
        entries = (*spec, *(None,) * (len(shape) - len(spec)))
        table[name] = (shape, tuple((entry,) if isinstance(entry, str) else entry or () for entry in entries))
    return table


def sharding_table() -> str:
    """A line for the parameters of one kind: name, shape, mesh axes of each dimension, how many there are."""
    lines = collections.Counter()
    for name, (shape, axes) in shardings().items():
        kind = re.sub(r"layer_\d", "layer_*", name)
        columns = " ".join("+".join(entry) or "-" for entry in axes)
        lines[f"{kind:50} {'x'.join(map(str, shape)):16} {columns}"] += 1
    return "".join(f"{line}  ({count})\n" if count > 1 else f"{line}\n" for line, count in lines.items())


def test_shardings_of_the_published_decoder_are_the_golden_ones():
    """`REGENERATE=1 python -m pytest tests/configs` writes the table anew; read its difference."""
    if os.environ.get("REGENERATE"):
        GOLDEN.write_text(sharding_table())
    assert sharding_table() == GOLDEN.read_text()


def test_published_decoder_divides_over_a_16x16_mesh():
    """No weight is left whole: the largest device holds little more than a 256th."""
    sizes = {"data": 1, "fsdp": 16, "tensor": 16}
    whole = share = 0
    for name, (shape, axes) in shardings().items():
        parts = [math.prod(sizes[axis] for axis in entry) for entry in axes]
        assert all(size % part == 0 for size, part in zip(shape, parts, strict=True)), name
        whole += math.prod(shape)
        share += math.prod(shape) // math.prod(parts)
    assert whole / 256 <= share < 1.1 * whole / 256
