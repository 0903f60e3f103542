"""Draws images for captions, ranks them with CLIP and keeps the best.

    python -m launch.generate --workdir=W --prompt="a small red circle" --num_samples=512 --keep=32 --out=DIR

writes DIR/grid.png (a row a prompt, best first), the images, and DIR/manifest.json. What has been sampled is kept in
DIR/drawn as it comes: the same command after a stop goes on from there.
"""

import hashlib
import re
import sys
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

import clip_jax
import dalle_jax
from dalle_jax.config import config_hash, read_json, write_json
from dalle_jax.data.config import DataConfig
from dalle_jax.data.images.decode import decode
from dalle_jax.data.images.grid import image_grid, save_png
from dalle_jax.data.records import BadSample
from dalle_jax.decoder.sampling import SamplingConfig
from dalle_jax.errors import UserError
from dalle_jax.pipeline import Dalle
from dalle_jax.ranking import Samples
from dalle_jax.sample_store import FolderStore
from dalle_jax.storage import as_path
from dalle_jax.text_files import decode_text, split_lines
from dalle_jax.training.checkpoints.checksums import fingerprint
from dalle_jax.training.checkpoints.workdir import saved_steps
from dalle_jax.training.parallel.processes import is_primary
from launch.cli import start
from launch.run.coordination import check_processes

WORKDIR = flags.DEFINE_string("workdir", None, "of the trained run")
PROMPT = flags.DEFINE_multi_string("prompt", [], "a caption; may be given several times")
PROMPTS = flags.DEFINE_string("prompts", None, "text file, a caption a line")
OUT = flags.DEFINE_string("out", None, "folder for the results")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 512, "candidates of each prompt")
KEEP = flags.DEFINE_integer("keep", None, "how many to keep; default: 32 where CLIP ranks, else all")
CLIP = flags.DEFINE_string(
    "clip", None, "work directory of the CLIP that ranks; default: the run's own, if any; none: none"
)
SEED = flags.DEFINE_integer("seed", 0, "candidate i gets its noise from (seed, i) alone")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "divides the logits; 0: most likely codes")
TOP_K = flags.DEFINE_integer("top_k", None, "sample among this many most likely codes")
TOP_P = flags.DEFINE_float("top_p", None, "sample among the most likely codes with this probability in all")
GUIDANCE = flags.DEFINE_float("guidance_scale", 1.0, "above 1 follows the caption more closely")
PRIME = flags.DEFINE_string("prime", None, "image whose first rows of tokens are kept")
PRIME_ROWS = flags.DEFINE_integer("prime_rows", 0, "how many rows of tokens to keep of --prime")
MAX_SEQUENCES = flags.DEFINE_integer(
    "max_sequences", None, "sampled at once; default: as many as fit, 64 a device at the most on a CPU, 256 elsewhere"
)
STEP = flags.DEFINE_integer("step", None, "of the decoder's checkpoint; default: the newest")


def main() -> None:
    """Loads the models, samples, ranks and writes."""
    prompts = read_prompts()
    if WORKDIR.value is None or OUT.value is None:
        raise UserError("--workdir (the trained run) and --out (folder for the results) are needed")
    out = as_path(OUT.value)
    sampling: dict[str, Any] = {
        "temperature": TEMPERATURE.value,
        "top_k": TOP_K.value,
        "top_p": TOP_P.value,
        "guidance_scale": GUIDANCE.value,
    }
    SamplingConfig(**sampling)  # refuses before anything is loaded or written
    check_processes()
    dalle = dalle_jax.load(WORKDIR.value, step=STEP.value)
    clip, ranked_by = load_ranker(WORKDIR.value)
    prime = read_prime()
    settings = {
        "workdir": str(WORKDIR.value),
        "decoder_step": dalle.step,
        "weights": dalle.fingerprint,
        "config_hash": config_hash(read_json(epath.Path(WORKDIR.value) / "config.json")["config"]),
        **ranked_by,
        "seed": SEED.value,
        "prompts": prompts,
        "prime": PRIME.value,
        "prime_pixels": None if prime is None else hashlib.sha256(prime.tobytes()).hexdigest()[:12],
        "prime_rows": PRIME_ROWS.value,
        "sampling": sampling,
    }
    quiet = not is_primary() or not sys.stderr.isatty()
    with tqdm(total=len(prompts) * NUM_SAMPLES.value, unit="image", disable=quiet) as bar:

        def advance(done: int, total: int) -> None:
            bar.update(done - bar.n)

        samples = dalle.generate(
            prompts,
            num_samples=NUM_SAMPLES.value,
            keep=KEEP.value,
            score_fn=clip.score if clip is not None else None,
            seed=SEED.value,
            **sampling,
            prime=prime,
            prime_rows=PRIME_ROWS.value,
            max_sequences=MAX_SEQUENCES.value,
            store=FolderStore(out, settings),
            on_progress=advance,
        )
    if not is_primary():
        return
    write_results(out, dalle, prompts, samples, settings | {"num_samples": NUM_SAMPLES.value})
    print(f"{len(prompts)} prompt(s), {samples.images.shape[1]} of {NUM_SAMPLES.value} kept: {out / 'grid.png'}")


def read_prompts() -> list[str]:
    """The captions of --prompt and --prompts, in that order."""
    prompts = list(PROMPT.value)
    if PROMPTS.value:
        try:
            lines = split_lines(decode_text(as_path(PROMPTS.value).read_bytes()))
        except (OSError, UnicodeError) as error:
            raise UserError(f"--prompts={PROMPTS.value} cannot be read as UTF-8 text: {error}") from None
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise UserError('no caption given: --prompt="..." or --prompts=FILE')
    return prompts


def read_prime() -> np.ndarray | None:
    """The image of --prime, uint8 [height, width, 3]."""
    if not PRIME.value:
        return None
    try:
        return decode(as_path(PRIME.value).read_bytes(), max_pixels=DataConfig.max_pixels)
    except (OSError, BadSample) as error:
        raise UserError(f"--prime={PRIME.value} cannot be read as an image: {error}") from None


def load_ranker(workdir: str) -> tuple[clip_jax.Clip | None, dict[str, Any]]:
    """CLIP and where it came from: what --clip names, else the run's own, else none."""
    own = epath.Path(workdir) / "clip"
    if CLIP.value == "none" or (CLIP.value is None and not own.exists()):
        return None, {"clip": None, "clip_step": None, "clip_weights": None}
    where = as_path(CLIP.value or workdir)
    steps = saved_steps(where / "clip")
    clip = clip_jax.load(where, truncate=True)
    about = {"clip": str(where), "clip_step": steps[-1] if steps else None, "clip_weights": fingerprint(clip.variables)}
    return clip, about


def write_results(out: epath.Path, dalle: Dalle, prompts: list[str], samples: Samples, settings: dict) -> None:
    """The grid, a PNG an image, and the manifest that says how each was made; what an older one names goes."""
    out.mkdir(parents=True, exist_ok=True)
    older = named_images(out / "manifest.json")
    count, keep = samples.images.shape[:2]
    sheet = image_grid(samples.images.reshape(-1, *samples.images.shape[2:]), columns=keep)
    save_png(sheet, out / "grid.png")
    images = []
    for p in range(count):
        for rank in range(keep):
            name = f"{p:04d}_{rank:03d}.png"
            save_png(samples.images[p, rank], out / name)
            score = float(samples.scores[p, rank])
            images.append(
                {
                    "file": name,
                    "prompt": prompts[p],
                    "rank": rank,
                    "candidate": int(samples.indices[p, rank]),
                    "score": score if np.isfinite(score) else None,
                    "tokens": samples.tokens[p, rank].tolist(),
                }
            )
    # Before the manifest, so that after a stop in between it still names them.
    for name in older - {image["file"] for image in images}:
        (out / name).unlink(missing_ok=True)
    write_json(out / "manifest.json", settings | {"pictures": images})


def named_images(manifest: epath.Path) -> set[str]:
    """Files of images that a manifest names, in its own folder; none where it is absent or not what we write."""
    try:
        names = {image["file"] for image in read_json(manifest)["pictures"]}
    except (UserError, KeyError, TypeError):
        return set()
    return {name for name in names if re.fullmatch(r"\d{4,}_\d{3,}\.png", str(name))}


if __name__ == "__main__":
    start(main)
