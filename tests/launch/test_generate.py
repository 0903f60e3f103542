"""From captions to ranked images, by the script and by the library, with the tiny run's models."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import clip_jax
import dalle_jax
from dalle_jax.config import read_json, write_json
from dalle_jax.decoder.sampling import (
    SamplingConfig,
    candidate_keys,
    no_prime,
    prefill,
    sample_tokens,
    with_empty_captions,
)
from dalle_jax.errors import UserError
from dalle_jax.pipeline import Dalle
from dalle_jax.sample_store import Chunk
from dalle_jax.sampling_memory import sequence_bytes, text_bytes
from dalle_jax.training.checkpoints.checksums import fingerprint
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import make_mesh

pytestmark = pytest.mark.entry

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a small red circle", "a large blue square"]


def command(workdir: Path, out: Path, *arguments: str) -> list[str]:
    return [f"--workdir={workdir}", f"--prompt={CAPTIONS[0]}", f"--out={out}", "--max_sequences=2", *arguments]


def results(out: Path) -> dict[str, bytes]:
    """Everything that is written at the end, by name."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def chunks(out: Path) -> dict[str, int]:
    """Times of the chunks that are kept."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("drawn/*/*.npz"))}


# The script


@pytest.fixture(scope="module")
def drawn(scripts, tiny_run, tmp_path_factory) -> Path:
    """Two captions, six candidates each, the best four of them by the run's CLIP."""
    out = tmp_path_factory.mktemp("drawn")
    (out / "captions.txt").write_text(f"{CAPTIONS[1]}\n\n")
    arguments = [f"--prompts={out / 'captions.txt'}", "--num_samples=6", "--keep=4", "--seed=3"]
    ended = scripts("generate", *command(tiny_run, out / "out", *arguments))
    assert (ended.code, ended.err) == (0, ""), ended
    assert f"2 prompt(s), 4 of 6 kept: {out / 'out' / 'grid.png'}" in ended.out
    return out / "out"


def test_manifest_says_how_every_picture_was_made(drawn, tiny_run):
    manifest = json.loads((drawn / "manifest.json").read_text())
    pictures = manifest.pop("pictures")
    assert len(manifest.pop("config_hash")) == 12
    assert manifest.pop("weights") == dalle_jax.load(tiny_run).fingerprint, "images of other weights are not these"
    assert manifest.pop("clip_weights") == fingerprint(clip_jax.load(tiny_run).variables)
    assert manifest == {
        "workdir": str(tiny_run),
        "decoder_step": 2,
        "clip": str(tiny_run),
        "clip_step": 2,
        "seed": 3,
        "prompts": CAPTIONS,
        "prime": None,
        "prime_pixels": None,
        "prime_rows": 0,
        "sampling": {"temperature": 1.0, "top_k": None, "top_p": None, "guidance_scale": 1.0},
        "num_samples": 6,
    }
    assert [(p["prompt"], p["rank"]) for p in pictures] == [(text, rank) for text in CAPTIONS for rank in range(4)]
    for text in CAPTIONS:
        scores = [p["score"] for p in pictures if p["prompt"] == text]
        assert scores == sorted(scores, reverse=True) and np.isfinite(scores).all()
        assert len({p["candidate"] for p in pictures if p["prompt"] == text} & set(range(6))) == 4


def test_pictures_and_grid_are_those_of_the_manifest(drawn, alone):
    pictures = json.loads((drawn / "manifest.json").read_text())["pictures"]
    images = np.stack([np.asarray(Image.open(drawn / p["file"])) for p in pictures])
    decoded = alone.decode(np.asarray([p["tokens"] for p in pictures], np.int32))
    np.testing.assert_allclose(images.astype(int), decoded.astype(int), atol=1)
    # Two captions, four images each; a model of two steps may draw the same candidate of both alike.
    assert all(len(np.unique(half.reshape(4, -1), axis=0)) == 4 for half in np.split(images, 2))
    grid = Image.open(drawn / "grid.png")
    assert grid.width >= 4 * 64 and grid.height >= 2 * 64
    names = {p["file"] for p in pictures} | {"grid.png", "manifest.json"}
    assert {path.name for path in drawn.iterdir() if path.is_file()} == names


def test_second_start_draws_only_what_is_missing(scripts, drawn, tiny_run):
    before, kept = results(drawn), chunks(drawn)
    assert len(kept) == 6  # two candidates of one caption in each
    missing, damaged = sorted(kept)[0], sorted(kept)[-1]
    (folder,) = (drawn / "drawn").iterdir()
    (folder / missing).unlink()
    (folder / damaged).write_bytes((folder / damaged).read_bytes()[:100])
    arguments = [f"--prompts={drawn.parent / 'captions.txt'}", "--num_samples=6", "--keep=4", "--seed=3"]
    ended = scripts("generate", *command(tiny_run, drawn, *arguments))
    assert ended.code == 0, ended
    assert results(drawn) == before
    redrawn = {name for name, at in chunks(drawn).items() if at != kept[name]}
    assert redrawn == {missing, damaged}


def test_other_settings_draw_anew(scripts, tiny_run, tmp_path):
    for seed in (0, 1):
        ended = scripts("generate", *command(tiny_run, tmp_path, "--num_samples=2", f"--seed={seed}", "--clip=none"))
        assert ended.code == 0, ended
        pictures = json.loads((tmp_path / "manifest.json").read_text())["pictures"]
        assert [(p["candidate"], p["score"]) for p in pictures] == [(0, None), (1, None)]
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_pictures_of_an_older_request_go(scripts, tiny_run, tmp_path):
    """Those that its manifest names, and nothing else."""
    draw = command(tiny_run, tmp_path / "out", f"--prompt={CAPTIONS[1]}", "--clip=none")
    assert scripts("generate", *draw, "--num_samples=2").code == 0
    older = json.loads((tmp_path / "out/manifest.json").read_text())
    mine = [tmp_path / "mine.png", tmp_path / "out/mine.png", tmp_path / "out/0007_000.png"]
    for file in mine:
        file.touch()
    older["pictures"] += [{"file": name} for name in ("../mine.png", "mine.png", "9999_000.png")]  # the last is gone
    (tmp_path / "out/manifest.json").write_text(json.dumps(older))
    ended = scripts("generate", *draw, "--num_samples=1")
    assert (ended.code, ended.err) == (0, ""), ended
    left = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert left == {"grid.png", "0000_000.png", "0001_000.png", "mine.png", "0007_000.png"}
    assert mine[0].exists()


def test_prime_keeps_its_rows(scripts, tiny_run, drawn, tmp_path, alone):
    prime = drawn / "0000_000.png"
    arguments = ["--num_samples=2", f"--prime={prime}", "--prime_rows=3", "--clip=none"]
    ended = scripts("generate", *command(tiny_run, tmp_path, *arguments))
    assert ended.code == 0, ended
    tokens = np.asarray([p["tokens"] for p in json.loads((tmp_path / "manifest.json").read_text())["pictures"]])
    rows = 3 * alone.config.grid_size
    (given,) = alone.encode(np.asarray(Image.open(prime))[None])
    assert (tokens[:, :rows] == given[:rows]).all()
    assert (tokens[0, rows:] != tokens[1, rows:]).any() and (tokens[0, rows:] != given[rows:]).any()


def test_kill_between_chunks_loses_nothing(scripts, tiny_run, tmp_path):
    arguments = ["--num_samples=96", "--keep=5"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert scripts("generate", *command(tiny_run, whole, *arguments)).code == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.generate", *command(tiny_run, broken, *arguments)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not chunks(broken) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL, said  # it had not ended by itself
    kept = chunks(broken)
    assert len(kept) >= 1 and not (broken / "manifest.json").exists()
    assert scripts("generate", *command(tiny_run, broken, *arguments)).code == 0
    assert {name: chunks(broken)[name] for name in kept} == kept
    assert results(broken) == results(whole)


# The library


@pytest.fixture(scope="module")
def dalle(tiny_run) -> Dalle:
    """On a mesh of all eight devices."""
    return dalle_jax.load(tiny_run)


@pytest.fixture(scope="module")
def alone(dalle) -> Dalle:
    """The same models on one device."""
    params = jax.device_get(dalle.params)
    return Dalle(dalle.codec, dalle.tokenizer, dalle.config, params, make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def everything(alone):
    """Eight candidates of each caption, four at a time."""
    return alone.generate(CAPTIONS, num_samples=8, max_sequences=4)


def brightness(images, caption: str):
    """A score that a test can work out; of the second caption, dark images are the good ones."""
    mean = np.asarray(images, np.float32).mean((1, 2, 3))
    return mean if caption == CAPTIONS[0] else -mean


def test_without_a_score_candidates_come_in_order(everything):
    assert everything.images.shape == (2, 8, 64, 64, 3) and everything.images.dtype == np.uint8
    assert everything.tokens.shape == (2, 8, 64) and everything.tokens.dtype == np.int32
    np.testing.assert_array_equal(everything.indices, np.tile(np.arange(8), (2, 1)))
    assert np.isnan(everything.scores).all()
    assert len(np.unique(everything.tokens[0], axis=0)) == 8


def test_pictures_are_what_their_tokens_decode_to(alone, everything):
    for tokens, images in zip(everything.tokens, everything.images, strict=True):
        np.testing.assert_array_equal(alone.decode(tokens), images)


def test_best_come_first(alone, everything):
    progress = []
    best = alone.generate(
        CAPTIONS, num_samples=8, keep=3, score_fn=brightness, max_sequences=4,
        on_progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert progress == [(4, 16), (8, 16), (12, 16), (16, 16)]
    for p, caption in enumerate(CAPTIONS):
        scores = brightness(everything.images[p], caption)
        order = np.argsort(-scores, kind="stable")[:3]
        np.testing.assert_array_equal(best.indices[p], order)
        np.testing.assert_allclose(best.scores[p], scores[order], rtol=1e-5)
        np.testing.assert_array_equal(best.tokens[p], everything.tokens[p][order])
        np.testing.assert_array_equal(best.images[p], everything.images[p][order])


def test_one_caption_has_no_axis(alone, everything):
    one = alone.generate(CAPTIONS[1], num_samples=8, max_sequences=4)
    for ours, theirs in zip(one, everything, strict=True):
        np.testing.assert_array_equal(ours, theirs[1])


@pytest.mark.parametrize("max_sequences", [2, 16])
def test_chunks_do_not_matter(alone, everything, max_sequences):
    samples = alone.generate(CAPTIONS, num_samples=8, max_sequences=max_sequences)
    np.testing.assert_array_equal(samples.tokens, everything.tokens)
    np.testing.assert_array_equal(samples.images, everything.images)


def test_fewer_candidates_are_the_first_ones(alone, everything):
    samples = alone.generate(CAPTIONS, num_samples=3, max_sequences=4)  # The chunk of four is padded.
    np.testing.assert_array_equal(samples.tokens, everything.tokens[:, :3])
    np.testing.assert_allclose(samples.images.astype(int), everything.images[:, :3].astype(int), atol=1)


def test_eight_devices_draw_what_one_draws(dalle, everything):
    assert dalle.mesh.size == 8
    samples = dalle.generate(CAPTIONS, num_samples=8)
    np.testing.assert_array_equal(samples.tokens, everything.tokens)
    np.testing.assert_allclose(samples.images.astype(int), everything.images.astype(int), atol=1)


def on_mesh(tiny_run, folder: Path, **mesh: Any) -> Dalle:
    """The run as if it had been trained on another mesh."""
    for entry in tiny_run.iterdir():
        (folder / entry.name).symlink_to(entry)
    config = json.loads((tiny_run / "config.json").read_text())
    config["config"]["mesh"] |= mesh
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return dalle_jax.load(folder)


@pytest.mark.parametrize("free, parts", [(10**12, 2), (10**3, 8)])
@pytest.mark.parametrize("batch", [("data", "fsdp"), ("data", "fsdp", "tensor")])
def test_a_run_is_spread_as_it_was_trained(tiny_run, tmp_path, everything, monkeypatch, batch, free, parts):
    """As near as the devices allow: 16 x 2 of the run become 4 x 2 of eight. Weights along `tensor` alone, so that they
    are not gathered for every token, where memory allows that."""
    monkeypatch.setattr("dalle_jax.pipeline.free_bytes", lambda mesh: free)
    spread = on_mesh(tiny_run, tmp_path, fsdp=16, tensor=2, rules=[["batch", batch]])
    assert dict(spread.mesh.shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    biggest = max(jax.tree.leaves(spread.params), key=lambda leaf: leaf.size)
    assert biggest.addressable_shards[0].data.size == biggest.size // parts
    samples = spread.generate(CAPTIONS, num_samples=8)
    # A sum in another order may tip a draw between two codes.
    assert (samples.tokens == everything.tokens).mean() > 0.95


def test_a_mesh_that_does_not_divide_the_weights_here_gives_way(tiny_run, tmp_path, monkeypatch):
    """Five devices along `fsdp`, without the memory for whole weights on each."""
    five = jax.devices()[:5]
    monkeypatch.setattr("dalle_jax.pipeline.free_bytes", lambda mesh: 10**3)
    monkeypatch.setattr(jax, "devices", lambda *_: five)
    assert dict(on_mesh(tiny_run, tmp_path, data=1, fsdp=-1).mesh.shape) == {"data": 5, "fsdp": 1, "tensor": 1}


def test_chunks_are_alike_at_every_start(alone, monkeypatch):
    """A little more or less of free memory changes neither programs nor the names of chunks; a lot of it is not used
    for one chunk that a stop would lose."""
    sizes = {}
    each = sequence_bytes(alone.config, alone.codec.image_size)
    for free in (0, 20 * each, 22 * each, 24 * each, 10**15):
        monkeypatch.setattr("dalle_jax.sampling_memory.free_bytes", lambda mesh, free=free: free)
        sizes[free] = alone._plan(1, 512, guided=False, limit=None)
    assert [p.candidates for p in sizes.values()] == [2, 8, 8, 8, 64]


def test_pictures_in_every_form_have_the_same_tokens(alone, everything, tmp_path, monkeypatch):
    images = everything.images[0][:5]
    tokens = alone.encode(images)
    decoded = alone.decode(tokens)
    assert len(np.unique(decoded, axis=0)) == 5
    Image.fromarray(images[4]).save(tmp_path / "last.png")
    mixed = [*images[:3], Image.fromarray(images[3]), tmp_path / "last.png"]
    np.testing.assert_array_equal(alone.encode(mixed), tokens)
    monkeypatch.setattr("dalle_jax.sampling_memory._IMAGES_AT_ONCE", 2)
    np.testing.assert_array_equal(alone.encode(iter(mixed)), tokens)
    np.testing.assert_array_equal(alone.decode(tokens), decoded)
    assert alone.encode([]).shape == (0, 64) and alone.decode(tokens[:0]).shape == (0, 64, 64, 3)
    with pytest.raises(UserError, match="image 0 is float64"):
        alone.encode(images / 255.0)
    with pytest.raises(UserError, match="images come in a list"):
        alone.encode(images[0])
    primed = alone.generate(CAPTIONS[0], num_samples=2, prime=Image.fromarray(images[3]), prime_rows=2)
    np.testing.assert_array_equal(primed.tokens[:, :16], np.tile(tokens[3, :16], (2, 1)))


@pytest.mark.parametrize(
    ("prompts", "options", "part"),
    [
        ([], {}, "no prompt is given"),
        (np.array(["a red circle", None], object), {}, "prompt 2 of 2 is not a string but NoneType"),
        (["a red circle", "\u200b"], {}, "prompt 2 of 2 is empty"),
        ("a red circle", {"seed": -1}, "seed must be a whole number from 0 to"),
        ("a red circle", {"seed": 2**32}, "seed must be a whole number from 0 to"),
    ],
)
def test_what_cannot_be_drawn(alone, prompts, options, part):
    with pytest.raises(UserError, match=part):
        alone.generate(prompts, num_samples=2, **options)


def test_what_could_not_be_scored_comes_last(alone):
    def score(images, caption):
        return np.array([np.nan, -2.0, -1.0, np.nan], np.float32)[: len(images)]

    assert alone.generate(CAPTIONS[0], num_samples=4, score_fn=score, max_sequences=4).indices.tolist() == [2, 1, 0, 3]


def test_no_sequence_at_once_is_refused(alone):
    with pytest.raises(UserError, match="max_sequences must be 1 or more, not 0"):
        alone.generate(CAPTIONS, num_samples=2, max_sequences=0)


def test_guidance_is_drawn_on_any_mesh_and_in_chunks(alone, dalle, everything):
    """Prompts that are padded, each with its empty caption behind all of them, as the drawing loop has them."""
    captions = [*CAPTIONS, "a large blue square"]
    config = dataclasses.replace(alone.config, caption_dropout=0.1)
    alone, dalle = (Dalle(one.codec, one.tokenizer, config, one.params, one.mesh, one.rules) for one in (alone, dalle))
    guided = alone.generate(captions, num_samples=4, guidance_scale=3.0, max_sequences=8)
    for samples in (
        alone.generate(captions, num_samples=4, guidance_scale=3.0, max_sequences=4),
        dalle.generate(captions, num_samples=4, guidance_scale=3.0),
    ):
        np.testing.assert_array_equal(samples.tokens, guided.tokens)
    assert (guided.tokens[:2] != everything.tokens[:, :4]).mean() > 0.02, "after two steps captions say little"
    text = with_empty_captions(jnp.asarray(alone._encode_prompts(captions)))
    keys = candidate_keys(0, jnp.arange(4))
    with alone._on_mesh():
        text_kv = prefill(alone.config, alone.params, text)
        tokens = sample_tokens(
            alone.config, alone.params, text_kv, keys, no_prime(alone.config, 3), SamplingConfig(guidance_scale=3.0)
        )
    np.testing.assert_array_equal(jnp.moveaxis(tokens, 0, 1), guided.tokens)


def test_text_of_many_prompts_takes_its_place_too(alone, monkeypatch):
    sequence, text = sequence_bytes(alone.config, alone.codec.image_size), text_bytes(alone.config)
    assert text == 2 * sum(x.k.nbytes for part in alone._prefill(alone._encode_prompts(CAPTIONS[:1]), SamplingConfig())
                           for x in part)  # fmt: skip
    monkeypatch.setattr("dalle_jax.sampling_memory.text_bytes", lambda config: 10 * sequence)
    monkeypatch.setattr("dalle_jax.sampling_memory.free_bytes", lambda mesh: 2 * (32 + 10) * sequence)
    plan = alone._plan(100, 2, guided=False, limit=None)
    assert plan.candidates == 2 and plan.prompts == 2, "32 // (2 + 10), not 16"


def test_another_codec_than_the_decoders_is_refused(tiny_run, tmp_path):
    for entry in tiny_run.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "decoder").unlink()
    (tmp_path / "decoder").mkdir()
    for entry in (tiny_run / "decoder").iterdir():
        (tmp_path / "decoder" / entry.name).symlink_to(entry)
    assert dalle_jax.load(tmp_path).fingerprint.endswith(read_json(tmp_path / "decoder" / "codec.json")["fingerprint"])
    (tmp_path / "decoder" / "codec.json").unlink()
    write_json(tmp_path / "decoder" / "codec.json", {"fingerprint": "0123456789abcdef"})
    with pytest.raises(UserError, match="is not the one that the decoder in .* learned from"):
        dalle_jax.load(tmp_path)
    (tmp_path / "decoder" / "codec.json").unlink()
    dalle_jax.load(tmp_path)  # as runs of old


def test_guidance_of_a_decoder_that_saw_no_empty_caption_is_refused(alone):
    config = dataclasses.replace(alone.config, caption_dropout=0.0)
    never = Dalle(alone.codec, alone.tokenizer, config, alone.params, alone.mesh)
    with pytest.raises(UserError, match="seen no empty caption: train it with --config.decoder.model.caption_dropout"):
        never.generate(CAPTIONS, num_samples=2, guidance_scale=3.0)


def test_clip_ranks(alone, tiny_run):
    clip = clip_jax.load(tiny_run)
    best = alone.generate(CAPTIONS, num_samples=4, keep=2, score_fn=clip.score, max_sequences=4)
    assert (np.diff(best.scores, axis=1) <= 0).all()
    for images, scores, caption in zip(best.images, best.scores, CAPTIONS, strict=True):
        np.testing.assert_allclose(clip.score(images, caption), scores, rtol=1e-4)


def test_published_numbers_are_the_defaults(alone, monkeypatch):
    """512 candidates, the best 32: looked at without drawing."""
    asked = {}

    def chunks(self, request, plan):
        asked["num_samples"] = request.num_samples
        scores = np.arange(512.0, dtype=np.float32)[:, None]
        yield slice(0, 1), np.arange(512), Chunk(np.zeros((512, 1, 64), np.int32), scores)

    monkeypatch.setattr(Dalle, "_chunks", chunks)
    samples = alone.generate(CAPTIONS[0], score_fn=brightness)
    assert asked == {"num_samples": 512}
    np.testing.assert_array_equal(samples.indices, np.arange(511, 511 - 32, -1))
