"""Captions to ranked pictures: sample many, score them, keep the best (DALL·E §2.6)."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from dalle_jax.codec import load_codec
from dalle_jax.codec.compatibility import check_pinned
from dalle_jax.config import from_config_dict
from dalle_jax.data.captions import listed
from dalle_jax.data.images.arrays import Picture, picture_list, read_picture
from dalle_jax.data.images.transforms import dalle_inference
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.decoder.config import DecoderConfig, DecoderStage
from dalle_jax.decoder.model import abstract_params
from dalle_jax.decoder.sampling import (
    Prime,
    SamplingConfig,
    candidate_keys,
    draw,
    drawing_params,
    drawing_rules,
    no_prime,
    prefill,
    with_empty_captions,
)
from dalle_jax.decoder.task import ImageTokens
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import CacheLayout
from dalle_jax.storage import as_path
from dalle_jax.training.checkpoints.checksums import fingerprint
from dalle_jax.training.checkpoints.manager import load_params
from dalle_jax.training.checkpoints.workdir import read_workdir
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import fit_to_devices, make_mesh
from dalle_jax.training.parallel.processes import gather, to_host
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, param_shardings, put_keys
from dalle_jax.training.telemetry.memory import free_bytes

ScoreFn = Callable[[jax.Array, str], jax.Array | np.ndarray]
"""`(uint8 images [batch, height, width, 3], caption) -> float32 [batch]`, higher is better; CLIP's `score`."""


_AT_ONCE = {True: 64, False: 256}
"""Sequences a device draws at once at the most, on a CPU and elsewhere: more gain nothing there, and a run that is
stopped loses the chunk that it is at."""


_PICTURES_AT_ONCE = 64


class Samples(NamedTuple):
    """What was kept, best first (in candidate order without a score). No `prompts` axis for a single string."""

    images: UInt8[np.ndarray, "prompts keep height width 3"]
    scores: Float[np.ndarray, "prompts keep"]
    """NaN without a `score_fn`."""
    tokens: Int[np.ndarray, "prompts keep G"]
    indices: Int[np.ndarray, "prompts keep"]
    """Which candidate each picture was: with the seed, its name."""


class Chunk(NamedTuple):
    """Some candidates of some prompts, as they were drawn."""

    tokens: Int[np.ndarray, "C P G"]
    scores: Float[np.ndarray, "C P"]


@runtime_checkable
class ChunkStore(Protocol):
    """Where finished chunks are kept, so that a stopped run need not draw them again."""

    def get(self, prompts: slice, candidates: slice) -> Chunk | None:
        """A chunk of an earlier run with the same settings, if there is one."""
        ...

    def put(self, prompts: slice, candidates: slice, chunk: Chunk) -> None:
        """Keeps a chunk."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a request is cut: every call of the sampler draws `candidates` of `prompts`, the last ones padded."""

    prompts: int
    candidates: int


class Dalle:
    """A trained codec, tokenizer and decoder, ready to draw."""

    def __init__(
        self,
        codec: ImageTokens,
        tokenizer: Tokenizer,
        config: DecoderConfig,
        params: Any,
        mesh: Mesh,
        rules: ShardingRules | None = None,
    ):
        """Use `load` for a work directory.

        Args:
          codec: pictures to tokens and back.
          tokenizer: of the captions the decoder was trained on.
          config: of the decoder.
          params: the decoder's parameters, on the mesh.
          mesh: candidates are spread over the axes that the rules give to `batch`.
          rules: by default those of `ShardingRules()`.
        """
        self.codec, self.tokenizer, self.config, self.mesh = codec, tokenizer, config, mesh
        self.rules = rules or ShardingRules()
        self.params = drawing_params(config, params, mesh)
        """As drawing reads them; on one CPU device that is not how they are trained."""
        self.step: int | None = None
        """Of the decoder's checkpoint, where it was loaded from one."""
        self.fingerprint = ""
        """Of the weights of decoder and codec, where they were loaded."""

    def encode(self, images: np.ndarray | Iterable[Picture] | Picture) -> Int[np.ndarray, "B G"]:
        """Pictures to tokens, raster order, as many at once as fit.

        Args:
          images: uint8 [B, height, width, 3], or a list of such arrays, Pillow images and paths. Those of another size
            than the codec's are resized and cropped as in evaluation.

        Raises:
          UserError: something is not a picture, or a file cannot be read.
        """
        squares = [self._square(read_picture(picture, i)) for i, picture in enumerate(picture_list(images))]
        return self._in_parts(self.codec.encode, np.stack(squares)) if squares else self._no_tokens()

    def decode(self, tokens: Int[np.ndarray, "B G"]) -> UInt8[np.ndarray, "B height width 3"]:
        """Tokens to pictures, as many at once as fit."""
        size = self.codec.image_size
        return self._in_parts(self.codec.decode, tokens) if len(tokens) else np.zeros((0, size, size, 3), np.uint8)

    def _in_parts(self, run: Callable[[jax.Array], jax.Array], rows: np.ndarray) -> np.ndarray:
        """In parts of one of a few sizes, so that few programs are compiled."""
        fitting = free_bytes(self.mesh) // (2 * self.mesh.devices.size * picture_bytes(self.codec.image_size))
        most = 2 ** (min(max(fitting, 2), _PICTURES_AT_ONCE).bit_length() - 1)
        parts = [rows[start : start + most] for start in range(0, len(rows), most)]
        # Never one row alone, see `_plan`.
        sizes = [min(most, max(2, 1 << (len(part) - 1).bit_length())) for part in parts]
        done = [
            np.asarray(run(jnp.asarray(_pad(part, size))))[: len(part)] for part, size in zip(parts, sizes, strict=True)
        ]
        return np.concatenate(done)

    def _no_tokens(self) -> Int[np.ndarray, "0 G"]:
        return np.zeros((0, self.codec.grid_size**2), np.int32)

    def generate(
        self,
        prompts: str | Iterable[str],
        *,
        num_samples: int = 512,
        keep: int | None = None,
        score_fn: ScoreFn | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        prime: Picture | None = None,
        prime_rows: int = 0,
        max_sequences: int | None = None,
        store: ChunkStore | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Samples:
        """Draws `num_samples` pictures of every prompt and keeps the `keep` that score best.

        Args:
          prompts: one caption, or several.
          num_samples: candidates of each prompt; the paper draws 512.
          keep: how many to return; by default the published 32 with a `score_fn` (or all, if fewer), else all.
          score_fn: ranks candidates, usually `clip.score`.
          seed: candidate i of any prompt gets noise from (seed, i) alone; 0 to 2**32 - 1.
          temperature: divides the logits; 0 takes the most likely codes.
          top_k: draw among this many most likely codes.
          top_p: draw among the most likely codes that hold this probability.
          guidance_scale: above 1 follows the caption more closely; needs a decoder trained with caption dropout.
          prime: a picture (an array, a Pillow image, a path) whose first rows of tokens every candidate starts with.
          prime_rows: how many rows of tokens to take from `prime`.
          max_sequences: sequences drawn at once, all prompts together (on one device 2 at least); by default a power of
            two that half of the free memory holds, 64 a device at the most on a CPU and 256 elsewhere.
          store: keeps chunks as they are drawn.
          on_progress: called with (sequences done, sequences in all).

        Raises:
          UserError: for no prompt, an empty or too long one, a seed that is none, a `keep` over `num_samples`, a `keep`
            without a way to choose, rows of a picture that is not given, or guidance of a decoder that has seen no
            empty caption.
        """
        texts = [prompts] if isinstance(prompts, str) else listed(prompts, "prompts")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"prompt {i + 1} of {len(texts)} is no string but {type(text).__name__}")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed must be from 0 to 2**32 - 1, not {seed}: others would draw the same pictures")
        keep = _check_keep(num_samples, keep, score_fn)
        sampling = SamplingConfig(temperature, top_k, top_p, guidance_scale)
        if sampling.guided and not self.config.caption_dropout:
            raise UserError(
                f"guidance_scale is {guidance_scale:g}, but this decoder has seen no empty caption: train it with "
                "--config.decoder.model.caption_dropout=0.1, say, or leave guidance out"
            )
        text = self._encode_prompts(texts)
        primed = self._prime(prime, prime_rows)
        plan = self._plan(len(texts), num_samples, sampling, max_sequences)
        best = _Best(len(texts), keep)
        done = 0
        for where, candidates, tokens, scores in self._chunks(
            texts, text, num_samples, plan, seed, sampling, primed, score_fn, store
        ):
            best.add(where, candidates, tokens, scores)
            done += tokens.shape[0] * tokens.shape[1]
            if on_progress is not None:
                on_progress(done, len(texts) * num_samples)
        samples = best.samples(self.decode)
        return Samples(*(x[0] for x in samples)) if isinstance(prompts, str) else samples

    def _chunks(
        self, texts, text, num_samples, plan, seed, sampling, primed, score_fn, store
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (prompts, candidate indices [C], tokens [C, P, G], scores [C, P]) without the padding."""
        for first in range(0, len(texts), plan.prompts):
            where = slice(first, min(first + plan.prompts, len(texts)))
            rows = _pad(text[where], plan.prompts)
            text_kv = None
            for start in range(0, num_samples, plan.candidates):
                indices = np.arange(start, min(start + plan.candidates, num_samples))
                span = slice(start, start + len(indices))
                chunk = _stored(store, where, span) if store is not None else None
                if chunk is None:
                    if text_kv is None:
                        text_kv = self._prefill(rows, sampling)
                    tokens = self._draw(text_kv, _pad(indices, plan.candidates), plan.prompts, seed, sampling, primed)
                    chunk = self._finish(tokens, len(indices), texts[where], score_fn)
                    if store is not None:
                        store.put(where, span, chunk)
                yield where, indices, chunk.tokens, chunk.scores

    def _prefill(self, text: np.ndarray, sampling: SamplingConfig) -> Any:
        with self._on_mesh():
            rows = jnp.asarray(text)
            return prefill(self.config, self.params, with_empty_captions(rows) if sampling.guided else rows)

    def _draw(self, text_kv, indices, prompts, seed, sampling, primed) -> jax.Array:
        with self._on_mesh():
            keys = candidate_keys(seed, jnp.asarray(indices))
            keys = put_keys(keys, batch_sharding(self.mesh, self.rules))
            prime = no_prime(self.config, prompts) if primed is None else _for_all(primed, prompts)
            return draw(self.config, self.params, text_kv, keys, prime, sampling)

    def _finish(self, tokens: jax.Array, count: int, texts: Sequence[str], score_fn: ScoreFn | None) -> Chunk:
        """Decodes and scores on device; only tokens and scores come to the host."""
        scores = np.full((count, len(texts)), np.nan, np.float32)
        if score_fn is not None:
            for i, caption in enumerate(texts):
                pictures = self.codec.decode(tokens[:, i])
                scores[:, i] = to_host(score_fn(pictures, caption))[:count]
        return Chunk(to_host(tokens)[:count, : len(texts)], scores)

    def _encode_prompts(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            raise UserError("no prompt is given: name at least one caption")
        for i, text in enumerate(texts):
            if not self.tokenizer.pieces(text):  # nothing, blanks, or characters that the tokenizer takes out
                raise UserError(f"prompt {i + 1} of {len(texts)} is empty: give it a caption")
        length = self.config.text_length
        ids = self.tokenizer.encode(texts, length + 1)
        for text, row in zip(texts, ids, strict=True):
            if row[-1] != 0:
                raise UserError(
                    f"the prompt '{text[:40]}...' is too long: this model reads {length - 1} text tokens; shorten it"
                )
        return ids[:, :length]

    def _prime(self, image: Picture | None, rows: int) -> Prime | None:
        if image is None and rows == 0:
            return None
        if image is None or not 0 < rows <= self.config.grid_size:
            raise UserError(
                f"prime and prime_rows go together: a picture, and 1 to {self.config.grid_size} rows of its tokens"
            )
        return Prime(jnp.asarray(self.encode([image])), jnp.int32(rows * self.config.grid_size))

    def _square(self, image: np.ndarray) -> np.ndarray:
        size = self.codec.image_size
        return image if image.shape[:2] == (size, size) else dalle_inference(image, size)

    def _plan(self, prompts: int, num_samples: int, sampling: SamplingConfig, limit: int | None) -> Plan:
        """Chunks that fit: at most `limit` sequences at once, candidates a multiple of the mesh's data devices."""
        devices = math.prod(self.mesh.shape[axis] for axis in self.rules.batch)
        branches = 2 if sampling.guided else 1
        sequence = branches * sequence_bytes(self.config, self.codec.image_size)
        text = 0 if limit is not None else branches * self.mesh.devices.size * text_bytes(self.config)
        if limit is None:
            fitting = min(gather(max(int((free_bytes(self.mesh) * 0.5 - text) / sequence), 1)))
            # A power of two: a later start, with a little more or less of memory, needs the same programs and chunks.
            limit = min(2 ** (fitting.bit_length() - 1), _AT_ONCE[jax.default_backend() == "cpu"] * devices)
        elif limit < 1:
            raise UserError(f"max_sequences must be 1 or more, not {limit}")
        # Never one row alone: XLA's product of one row on a CPU differs in rounding from that row among several.
        step = max(devices, 2)
        candidates = min(-(-num_samples // step), max(limit // step, 1)) * step
        together = limit * sequence // (candidates * sequence + text)
        return Plan(prompts=max(min(prompts, together), 1), candidates=candidates)

    @contextlib.contextmanager
    def _on_mesh(self):
        with jax.set_mesh(self.mesh), self.rules.context():
            yield


def _stored(store: ChunkStore, prompts: slice, candidates: slice) -> Chunk | None:
    """A chunk that was kept, where all processes find it: those that do not must not draw alone."""
    chunk = store.get(prompts, candidates)
    return chunk if all(gather(chunk is not None)) else None


class _Best:
    """The best candidates so far of every prompt; only tokens are held, whatever the number of candidates."""

    def __init__(self, prompts: int, keep: int):
        self.keep = keep
        self.rows: list[list[tuple[float, int, np.ndarray]]] = [[] for _ in range(prompts)]

    def add(self, where: slice, indices: np.ndarray, tokens: np.ndarray, scores: np.ndarray) -> None:
        for p, prompt in enumerate(range(where.start, where.stop)):
            new = [(float(scores[c, p]), int(i), tokens[c, p]) for c, i in enumerate(indices)]
            # Best first, last what could not be scored; candidate order breaks ties, and stands alone without scores.
            merged = sorted(
                self.rows[prompt] + new, key=lambda row: (math.isnan(row[0]), -np.nan_to_num(row[0]), row[1])
            )
            self.rows[prompt] = merged[: self.keep]

    def samples(self, decode: Callable[[np.ndarray], np.ndarray]) -> Samples:
        scores = np.asarray([[score for score, _, _ in rows] for rows in self.rows], np.float32)
        indices = np.asarray([[index for _, index, _ in rows] for rows in self.rows], np.int32)
        tokens = np.asarray([[codes for _, _, codes in rows] for rows in self.rows])
        return Samples(np.stack([decode(row) for row in tokens]), scores, tokens, indices)


def load(workdir: epath.PathLike, *, step: int | None = None, mesh: MeshConfig | None = None) -> Dalle:
    """Loads the codec, tokenizer and decoder of a run (its average weights where it kept them).

    Args:
      workdir: of `launch.train`.
      step: of the decoder's checkpoint; None: the newest.
      mesh: how all devices are arranged; None: as they were when the run was trained, or as near to that as the devices
        here allow, so that a decoder that needs many devices is spread over them here too.

    Raises:
      UserError: where the directory is missing, of another format version, or has no trained decoder.
    """
    workdir = as_path(workdir)
    run = read_workdir(workdir)
    if not run.get("decoder"):
        raise UserError(f"{workdir} has no decoder: train one with a config that has a `decoder` section")
    stage = from_config_dict(DecoderStage, run["decoder"], "config.decoder")
    abstract = abstract_params(stage.model)
    codec = load_codec(codec_workdir(workdir), image_size=run["data"]["image_size"])
    check_pinned(codec, workdir / "decoder", codec_workdir(workdir))
    tokenizer = Tokenizer(workdir / "tokenizer.model")
    trained_on = from_config_dict(MeshConfig, run.get("mesh") or {}, "config.mesh")
    try:
        devices, rules, shardings = _spread(abstract, mesh or fit_to_devices(trained_on))
    except UserError:
        if mesh is not None:
            raise
        # The mesh takes so many devices as there are here, and the parameters do not divide over so many.
        devices, rules, shardings = _spread(abstract, fit_to_devices(MeshConfig()))
    loaded = load_params(workdir / "decoder", step=step, shardings=shardings)
    dalle = Dalle(codec, tokenizer, stage.model, loaded.params, devices, rules)
    dalle.step, dalle.fingerprint = loaded.step, f"{fingerprint(loaded.params)}-{codec.fingerprint}"
    return dalle


def _spread(abstract: Any, mesh: MeshConfig) -> tuple[Mesh, ShardingRules, Any]:
    devices = make_mesh(mesh)
    rules = drawing_rules(ShardingRules.of(mesh), abstract, devices, min(gather(free_bytes(devices))))
    return devices, rules, param_shardings(abstract, devices, rules)


def codec_workdir(workdir: epath.PathLike) -> epath.Path:
    """Where the codec of a run's decoder is: where the run names one, in the run, or that of the run it was tuned from.

    Raises:
      UserError: where a work directory is missing or of another format version.
    """
    workdir = as_path(workdir)
    run = read_workdir(workdir)
    named = (run.get("decoder") or {}).get("codec_from")
    if named:
        return as_path(named)
    base = run.get("init_from")
    return workdir if run.get("codec") or not base else codec_workdir(base)


def sequence_bytes(config: DecoderConfig, image_size: int) -> int:
    """Memory that drawing one sequence takes: its caches, its logits and its picture with the codec's activations."""
    slots = sum(
        CacheLayout(pattern, config.grid_size, config.grid_size, config.conv_kernel).slots
        for pattern in config.schedule
    )
    width = config.num_heads * config.head_dim
    caches = 2 * slots * width * jnp.dtype(config.dtype).itemsize
    return caches + 16 * config.codebook_size + picture_bytes(image_size)


def text_bytes(config: DecoderConfig) -> int:
    """Memory that a prompt's keys and values take on every device, whatever the number of its candidates."""
    width = config.num_heads * config.head_dim
    return 2 * config.num_layers * config.text_length * width * jnp.dtype(config.dtype).itemsize


def picture_bytes(image_size: int) -> int:
    """What a codec takes for a picture at its widest, about."""
    return 256 * 4 * image_size**2


def _check_keep(num_samples: int, keep: int | None, score_fn: ScoreFn | None) -> int:
    if num_samples < 1:
        raise UserError(f"num_samples must be 1 or more, not {num_samples}")
    if keep is None:
        keep = num_samples if score_fn is None else min(32, num_samples)
    if not 1 <= keep <= num_samples:
        raise UserError(f"keep is {keep}, but num_samples is {num_samples}: keep at most what is drawn")
    if score_fn is None and keep != num_samples:
        raise UserError(
            f"nothing ranks the {num_samples} samples to keep {keep}: give a score_fn (clip.score), or leave keep out"
        )
    return keep


def _pad(rows: np.ndarray, count: int) -> np.ndarray:
    """Repeats the last row up to a fixed count, so that the last chunk runs the program of the others."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def _for_all(prime: Prime, prompts: int) -> Prime:
    return Prime(jnp.broadcast_to(prime.tokens, (prompts, prime.tokens.shape[-1])), prime.length)
