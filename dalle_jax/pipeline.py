"""Captions to ranked images: sample many, score them, keep the best (DALL·E §2.6)."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from dalle_jax.codec import codec_of_run, load_codec
from dalle_jax.codec.compatibility import check_pinned
from dalle_jax.data.captions import listed
from dalle_jax.data.images.arrays import ImageLike, image_list, read_image
from dalle_jax.data.images.transforms import dalle_inference
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.decoder.config import DecoderConfig, DecoderStage
from dalle_jax.decoder.model import abstract_params
from dalle_jax.decoder.sampling import (
    Prime,
    SamplingConfig,
    candidate_keys,
    no_prime,
    prefill,
    sample_tokens,
    sampling_params,
    sampling_rules,
    with_empty_captions,
)
from dalle_jax.decoder.task import ImageTokens
from dalle_jax.errors import UserError
from dalle_jax.nn.cpu_decoding import DecodingLayout
from dalle_jax.ranking import Best, Samples, ScoreFn, choose_keep
from dalle_jax.run_record import read_run
from dalle_jax.sample_store import Chunk, ChunkStore, stored_chunk
from dalle_jax.sampling_memory import Plan, images_at_once, plan_chunks
from dalle_jax.training.checkpoints.checksums import fingerprint
from dalle_jax.training.checkpoints.reader import load_params
from dalle_jax.training.config import MeshConfig
from dalle_jax.training.parallel.mesh import fit_to_devices, make_mesh
from dalle_jax.training.parallel.processes import gather, to_host
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding, param_shardings, put_keys
from dalle_jax.training.telemetry.memory import free_bytes


@dataclasses.dataclass(frozen=True)
class SamplingRequest:
    """What `generate` was asked for, checked: captions as tokens, and how their samples are made and ranked."""

    prompts: Sequence[str]
    text: Int[np.ndarray, "prompts T"]
    """Token ids of the prompts."""
    num_samples: int
    seed: int
    sampling: SamplingConfig
    prime: Prime | None
    """Of one prompt, or none given."""
    score_fn: ScoreFn | None
    store: ChunkStore | None


class Dalle:
    """A trained codec, tokenizer and decoder, ready to sample."""

    def __init__(
        self,
        codec: ImageTokens,
        tokenizer: Tokenizer,
        config: DecoderConfig,
        params: Any,
        mesh: Mesh,
        rules: ShardingRules | None = None,
        *,
        layout: DecodingLayout | None = None,
    ):
        """Use `load` for a work directory.

        Args:
          codec: images to tokens and back.
          tokenizer: of the captions the decoder was trained on.
          config: of the decoder.
          params: the decoder's parameters, on the mesh.
          mesh: candidates are spread over the axes that the rules give to `batch`.
          rules: by default those of `ShardingRules()`.
          layout: how the parameters lie while sampling; None: as is fastest on the mesh. `ROWS` is for one device.

        Raises:
          UserError: `ROWS` on several devices.
        """
        self.codec, self.tokenizer, self.config, self.mesh = codec, tokenizer, config, mesh
        self.rules = rules or ShardingRules()
        layout = layout or DecodingLayout.fastest(mesh)
        if layout is DecodingLayout.ROWS and mesh.devices.size > 1:
            raise UserError(f"parameters lie in rows on one device alone, and the mesh has {mesh.devices.size}")
        self.params = sampling_params(config, params, layout)
        """As sampling reads them; in rows that is not how they are trained."""
        self.step: int | None = None
        """Of the decoder's checkpoint, where it was loaded from one."""
        self.fingerprint = ""
        """Of the weights of decoder and codec, where they were loaded."""

    def encode(self, images: np.ndarray | Iterable[ImageLike] | ImageLike) -> Int[np.ndarray, "B G"]:
        """Images to tokens, raster order, as many at once as fit.

        Args:
          images: uint8 [B, height, width, 3], or a list of such arrays, Pillow images and paths. Those of another size
            than the codec's are resized and cropped as in evaluation.

        Raises:
          UserError: something is not an image, or a file cannot be read.
        """
        squares = [self._square(read_image(image, i)) for i, image in enumerate(image_list(images))]
        if not squares:
            return np.zeros((0, self.codec.grid_size**2), np.int32)
        return self._in_parts(self.codec.encode, np.stack(squares))

    def decode(self, tokens: Int[np.ndarray, "B G"]) -> UInt8[np.ndarray, "B height width 3"]:
        """Tokens to images, as many at once as fit."""
        size = self.codec.image_size
        return self._in_parts(self.codec.decode, tokens) if len(tokens) else np.zeros((0, size, size, 3), np.uint8)

    def _in_parts(self, run: Callable[[jax.Array], jax.Array], rows: np.ndarray) -> np.ndarray:
        """In parts of one of a few sizes, so that few programs are compiled."""
        most = images_at_once(self.codec.image_size, self.mesh)
        parts = [rows[start : start + most] for start in range(0, len(rows), most)]
        # Never one row alone, see `plan_chunks`.
        sizes = [min(most, max(2, 1 << (len(part) - 1).bit_length())) for part in parts]
        done = [
            np.asarray(run(jnp.asarray(_pad(part, size))))[: len(part)] for part, size in zip(parts, sizes, strict=True)
        ]
        return np.concatenate(done)

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
        prime: ImageLike | None = None,
        prime_rows: int = 0,
        max_sequences: int | None = None,
        store: ChunkStore | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Samples:
        """Draws `num_samples` images of every prompt and keeps the `keep` that score best.

        Args:
          prompts: one caption, or several.
          num_samples: candidates of each prompt; the paper samples 512.
          keep: how many to return; by default the published 32 with a `score_fn` (or all, if fewer), else all.
          score_fn: ranks candidates, usually `clip.score`.
          seed: candidate i of any prompt gets noise from (seed, i) alone; 0 to 2**32 - 1.
          temperature: divides the logits; 0 takes the most likely codes.
          top_k: sample among this many most likely codes.
          top_p: sample among the most likely codes that hold this probability.
          guidance_scale: above 1 follows the caption more closely; needs a decoder trained with caption dropout.
          prime: an image (an array, a Pillow image, a path) whose first rows of tokens every candidate starts with.
          prime_rows: how many rows of tokens to take from `prime`.
          max_sequences: sequences sampled at once, all prompts together (on one device 2 at least); by default a power
            of two that half of the free memory holds, 64 a device at the most on a CPU and 256 elsewhere.
          store: keeps chunks as they are sampled.
          on_progress: called with (sequences done, sequences in all).

        Raises:
          UserError: for no prompt, an empty or too long one, a seed that is none, a `keep` over `num_samples`, a `keep`
            without a way to choose, rows of an image that is not given, or guidance of a decoder that has seen no
            empty caption.
        """
        texts = [prompts] if isinstance(prompts, str) else listed(prompts, "prompts")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"prompt {i + 1} of {len(texts)} is not a string but {type(text).__name__}")
        if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
            raise UserError(f"seed must be a whole number from 0 to 2**32 - 1, not {seed!r}")
        keep = choose_keep(num_samples, keep, score_fn)
        sampling = SamplingConfig(temperature, top_k, top_p, guidance_scale)
        if sampling.guided and not self.config.caption_dropout:
            raise UserError(
                f"guidance_scale is {guidance_scale:g}, but this decoder has seen no empty caption: train it with "
                "--config.decoder.model.caption_dropout=0.1, say, or leave guidance out"
            )
        request = SamplingRequest(
            prompts=texts,
            text=self._encode_prompts(texts),
            num_samples=num_samples,
            seed=seed,
            sampling=sampling,
            prime=self._prime(prime, prime_rows),
            score_fn=score_fn,
            store=store,
        )
        plan = self._plan(len(texts), num_samples, guided=sampling.guided, limit=max_sequences)
        best = Best(len(texts), keep)
        done = 0
        for rows, candidates, chunk in self._chunks(request, plan):
            best.add(rows, candidates, chunk.tokens, chunk.scores)
            done += chunk.scores.size
            if on_progress is not None:
                on_progress(done, len(texts) * num_samples)
        samples = best.samples(self.decode)
        return Samples(*(x[0] for x in samples)) if isinstance(prompts, str) else samples

    def _chunks(self, request: SamplingRequest, plan: Plan) -> Iterator[tuple[slice, Int[np.ndarray, " C"], Chunk]]:
        """Yields (prompts, candidate indices, their samples) without the padding."""
        for first in range(0, len(request.prompts), plan.prompts):
            rows = slice(first, min(first + plan.prompts, len(request.prompts)))
            text_kv = None
            for start in range(0, request.num_samples, plan.candidates):
                indices = np.arange(start, min(start + plan.candidates, request.num_samples))
                span = slice(start, start + len(indices))
                chunk = stored_chunk(request.store, rows, span)
                if chunk is None:
                    if text_kv is None:
                        text_kv = self._prefill(_pad(request.text[rows], plan.prompts), request.sampling)
                    tokens = self._sample(text_kv, _pad(indices, plan.candidates), request, plan)
                    chunk = self._rank(tokens, len(indices), request.prompts[rows], request.score_fn)
                    if request.store is not None:
                        request.store.put(rows, span, chunk)
                yield rows, indices, chunk

    def _prefill(self, text: np.ndarray, sampling: SamplingConfig) -> Any:
        with self._on_mesh():
            rows = jnp.asarray(text)
            return prefill(self.config, self.params, with_empty_captions(rows) if sampling.guided else rows)

    def _sample(self, text_kv: Any, indices: np.ndarray, request: SamplingRequest, plan: Plan) -> jax.Array:
        with self._on_mesh():
            keys = candidate_keys(request.seed, jnp.asarray(indices))
            keys = put_keys(keys, batch_sharding(self.mesh, self.rules))
            prime = no_prime(self.config, plan.prompts)
            if request.prime is not None:
                tokens = jnp.broadcast_to(request.prime.tokens, prime.tokens.shape)
                prime = Prime(tokens, request.prime.length)
            return sample_tokens(self.config, self.params, text_kv, keys, prime, request.sampling)

    def _rank(self, tokens: jax.Array, count: int, prompts: Sequence[str], score_fn: ScoreFn | None) -> Chunk:
        """Decodes and scores on device; only tokens and scores come to the host."""
        scores = np.full((count, len(prompts)), np.nan, np.float32)
        if score_fn is not None:
            for i, caption in enumerate(prompts):
                images = self.codec.decode(tokens[:, i])
                scores[:, i] = to_host(score_fn(images, caption))[:count]
        return Chunk(to_host(tokens)[:count, : len(prompts)], scores)

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

    def _prime(self, image: ImageLike | None, rows: int) -> Prime | None:
        if image is None and rows == 0:
            return None
        if image is None or not 0 < rows <= self.config.grid_size:
            raise UserError(
                f"prime and prime_rows go together: an image, and 1 to {self.config.grid_size} rows of its tokens"
            )
        return Prime(jnp.asarray(self.encode([image])), jnp.int32(rows * self.config.grid_size))

    def _square(self, image: np.ndarray) -> np.ndarray:
        size = self.codec.image_size
        return image if image.shape[:2] == (size, size) else dalle_inference(image, size)

    def _plan(self, prompts: int, num_samples: int, *, guided: bool, limit: int | None) -> Plan:
        return plan_chunks(
            self.config,
            self.codec.image_size,
            self.mesh,
            self.rules,
            prompts=prompts,
            num_samples=num_samples,
            guided=guided,
            limit=limit,
        )

    @contextlib.contextmanager
    def _on_mesh(self):
        with jax.set_mesh(self.mesh), self.rules.context():
            yield


def load(
    workdir: epath.PathLike,
    *,
    step: int | None = None,
    mesh: MeshConfig | None = None,
    layout: DecodingLayout | None = None,
) -> Dalle:
    """Loads the codec, tokenizer and decoder of a run (its average weights where it kept them).

    Args:
      workdir: of `launch.train`.
      step: of the decoder's checkpoint; None: the newest.
      mesh: how all devices are arranged; None: as they were when the run was trained, or as near to that as the devices
        here allow, so that a decoder that needs many devices is spread over them here too.
      layout: of the decoder's parameters; None: as is fastest on the mesh. See `Dalle`.

    Raises:
      UserError: where the directory is missing, of another format version, or has no trained decoder.
    """
    run = read_run(workdir)
    stage = run.stage("decoder", DecoderStage)
    abstract = abstract_params(stage.model)
    codec_from = run.codec_workdir()
    is_own = codec_from == run.workdir
    codec = codec_of_run(run) if is_own else load_codec(codec_from, image_size=run.data.image_size)
    check_pinned(codec, run.workdir / "decoder", codec_from)
    tokenizer = Tokenizer(run.workdir / "tokenizer.model")
    try:
        devices, rules, shardings = _spread(abstract, mesh or fit_to_devices(run.mesh))
    except UserError:
        if mesh is not None:
            raise
        # The mesh takes so many devices as there are here, and the parameters do not divide over so many.
        devices, rules, shardings = _spread(abstract, fit_to_devices(MeshConfig()))
    loaded = load_params(run.workdir / "decoder", step=step, shardings=shardings)
    dalle = Dalle(codec, tokenizer, stage.model, loaded.params, devices, rules, layout=layout)
    dalle.step, dalle.fingerprint = loaded.step, f"{fingerprint(loaded.params)}-{codec.fingerprint}"
    return dalle


def _spread(abstract: Any, mesh: MeshConfig) -> tuple[Mesh, ShardingRules, Any]:
    devices = make_mesh(mesh)
    rules = sampling_rules(ShardingRules.of(mesh), abstract, devices, min(gather(free_bytes(devices))))
    return devices, rules, param_shardings(abstract, devices, rules)


def _pad(rows: np.ndarray, count: int) -> np.ndarray:
    """Repeats the last row up to a fixed count, so that the last chunk runs the program of the others."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
