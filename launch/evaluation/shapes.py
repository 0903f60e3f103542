"""The whole road measured on drawn scenes: do the images show what their captions say?

A judge that looks at pixels alone (`dalle_jax.data.shapes.judge`) reads every attribute back. Captions are drawn anew:
`seen` ones use colour-shape pairs of the training set, `unseen` ones the pairs that no training image holds.
"""

import time
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from clip_jax import Clip
from dalle_jax.data.images.grid import image_grid, save_png
from dalle_jax.data.shapes.judge import ATTRIBUTES, CHANCE, accuracy
from dalle_jax.data.shapes.scenes import Scene, captions, draw, random_scene
from dalle_jax.pipeline import Dalle
from dalle_jax.training.parallel.processes import is_primary
from dalle_jax.training.telemetry.attempts import account, read_attempts
from dalle_jax.training.telemetry.clock import process_began

NUM_CAPTIONS = 200
CANDIDATES = 8
SHEET_CAPTIONS = 6
SHEET_CANDIDATES = 64
SHEET_TOP_P = 0.95
"""Keeps the rarest codes, which are stray patches, out of the sheet. The figures are of all codes, as in the paper."""
SEED = 20_210_224


def evaluate(dalle: Dalle, clip: Clip, out: epath.Path, max_objects: int = 1) -> dict[str, Any]:
    """Measures a run and draws its sheets.

    Args:
      dalle: codec and decoder.
      clip: what ranks.
      out: folder for grid.png and reconstructions.png.
      max_objects: of the scenes that the run was trained on.

    Returns:
      What `report.json` holds; accuracies are shares in [0, 1], means over captions and attributes.
      Those without `_seen` or `_unseen` in their names are of both splits' captions together.
    """
    chance = {"mean": round(float(np.mean(list(CHANCE.values()))), 4), **_by_attribute(CHANCE)}
    report: dict[str, Any] = {"captions": NUM_CAPTIONS, "candidates": CANDIDATES, "chance": chance}
    both = []
    for split in ("seen", "unseen"):
        scenes, texts, _ = _scenes(split, dalle.codec.image_size, max_objects)
        results = _accuracies(dalle, clip, scenes, texts)
        report[f"attribute_accuracy_{split}"] = _summary(results[:, 0])
        report |= _spread(results, f"_{split}")
        both.append(results)
        report[f"clip_gap_closed_{split}"] = gap_closed(results)
    report |= _spread(np.concatenate(both))
    scenes, texts, images = _scenes("seen", dalle.codec.image_size, max_objects)
    report |= _codec_figures(dalle, scenes, images, out)
    report["clip_retrieval_at_1"] = retrieval_at_1(clip, scenes, texts, images)
    _draw_sheet(dalle, clip, max_objects, out)
    return report


def _scenes(split: str, image_size: int, max_objects: int) -> tuple[list[Scene], list[str], np.ndarray]:
    """Scenes, a caption for each in one of its phrasings, and an image of each; the same at every call."""
    rng = np.random.default_rng((SEED, split == "unseen"))
    scenes, texts, images = [], [], []
    for _ in range(NUM_CAPTIONS):
        num_objects = int(rng.integers(1, max_objects, endpoint=True))
        scene = random_scene(rng, unseen=split == "unseen", num_objects=num_objects)
        scenes.append(scene)
        texts.append(str(rng.choice(captions(scene))))
        images.append(draw(scene, image_size, rng))
    return scenes, texts, np.stack(images)


def _accuracies(dalle: Dalle, clip: Clip, scenes: list[Scene], texts: list[str]) -> np.ndarray:
    """[captions, candidates, attributes], candidates in CLIP's order."""
    samples = dalle.generate(texts, num_samples=CANDIDATES, keep=CANDIDATES, score_fn=clip.score, seed=SEED)
    flat = samples.images.reshape(-1, *samples.images.shape[2:])
    repeated = [scene for scene in scenes for _ in range(CANDIDATES)]
    return accuracy(flat, repeated).reshape(len(scenes), CANDIDATES, -1)


def _spread(results: np.ndarray, suffix: str = "") -> dict[str, Any]:
    """Of [captions, candidates, attributes]: the mean candidate, and each caption's best by the judge."""
    best = results[np.arange(len(results)), results.mean(-1).argmax(1)]
    return {f"mean_of_8{suffix}": _summary(results.mean(1)), f"best_of_8_by_judge{suffix}": _summary(best)}


def _summary(results: np.ndarray) -> dict[str, Any]:
    """Mean of [captions, attributes], its 95% interval over captions (bootstrap), and the mean of each attribute."""
    means = results.mean(-1)
    picks = np.random.default_rng(0).integers(len(means), size=(2000, len(means)))
    low, high = np.percentile(means[picks].mean(1), [2.5, 97.5])
    by_attribute = _by_attribute(dict(zip(ATTRIBUTES, results.mean(0), strict=True)))
    return {"mean": round(float(means.mean()), 4), "interval_95": [round(low, 4), round(high, 4)], **by_attribute}


def seconds_until_now(workdir: epath.PathLike) -> float:
    """What a run took: the wall time of its stages, restarts included, and of this process, which evaluates it."""
    stages = [path.parent for path in epath.Path(workdir).glob("*/starts")]
    return sum(sum(account(read_attempts(stage)).values()) for stage in stages) + time.time() - process_began()


def _by_attribute(values: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in values.items()}


def gap_closed(results: np.ndarray) -> float | None:
    """How far CLIP's choice goes from the mean candidate to the judge's best: 0 at random, 1 at best.

    Args:
      results: [captions, candidates, attributes], CLIP's choice first.

    Returns:
      None where all candidates are equally good.
    """
    scores = results.mean(-1)
    mean, best = scores.mean(), scores.max(1).mean()
    return None if best <= mean else round(float((scores[:, 0].mean() - mean) / (best - mean)), 4)


def _codec_figures(dalle: Dalle, scenes: list[Scene], images: np.ndarray, out: epath.Path) -> dict[str, Any]:
    """PSNR, codes in use and the judge's view of what the codec alone makes of real images: the decoder's ceiling."""
    tokens = dalle.encode(images)
    copies = dalle.decode(tokens)
    error = np.mean((images / 255.0 - copies / 255.0) ** 2, axis=(1, 2, 3))
    columns = 16
    _save(_interleave(images[: 3 * columns], copies[: 3 * columns], columns), out / "reconstructions.png")
    return {
        "codec_psnr": round(float(np.mean(-10 * np.log10(np.maximum(error, 1e-10)))), 2),
        "codebook_usage": round(len(np.unique(tokens)) / dalle.codec.codebook_size, 4),
        "judge_on_reconstructions": _summary(accuracy(copies, scenes)),
        "judge_on_originals": _summary(accuracy(images, scenes)),
    }


def retrieval_at_1(clip: Clip, scenes: list[Scene], texts: list[str], images: np.ndarray) -> float:
    """Share of images whose best caption, and captions whose best image, describes the same scene; mean of both."""
    features = [np.asarray(x) for x in (clip.encode_image(images), clip.encode_text(texts))]
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in features)
    cosines = image @ text.T
    hits = [scenes[i] == scenes[j] for i, j in enumerate(cosines.argmax(1))]
    hits += [scenes[i] == scenes[j] for i, j in enumerate(cosines.argmax(0))]
    return round(float(np.mean(hits)), 4)


def _draw_sheet(dalle: Dalle, clip: Clip, max_objects: int, out: epath.Path) -> None:
    """grid.png: captions never seen, the best 8 of 64 candidates of each, best first."""
    _, texts, _ = _scenes("unseen", dalle.codec.image_size, max_objects)
    texts = texts[:SHEET_CAPTIONS]
    samples = dalle.generate(
        texts, num_samples=SHEET_CANDIDATES, keep=8, score_fn=clip.score, seed=SEED, top_p=SHEET_TOP_P
    )
    _save(captioned_grid(samples.images, texts), out / "grid.png")


def captioned_grid(images: np.ndarray, texts: list[str], gap: int = 4, line: int = 18) -> np.ndarray:
    """Rows of images [rows, columns, height, width, 3] under a line of text each, uint8."""
    rows, columns, height, width, _ = images.shape
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + line + gap) + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for row, text in enumerate(texts):
        top = gap + row * (height + line + gap)
        pen.text((gap, top), text, fill="black", font=font)
        for column in range(columns):
            image = Image.fromarray(images[row, column])
            sheet.paste(image, (gap + column * (width + gap), top + line))
    return np.asarray(sheet)


def _interleave(originals: np.ndarray, copies: np.ndarray, columns: int) -> np.ndarray:
    """A row of originals, then the same images as the codec gives them back, and so on."""
    pairs = [
        part[start : start + columns] for start in range(0, len(originals), columns) for part in (originals, copies)
    ]
    return image_grid(np.concatenate(pairs), columns)


def _save(sheet: np.ndarray, path: epath.Path) -> None:
    if is_primary():
        save_png(sheet, path)
