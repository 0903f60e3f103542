"""Captions to ids, as published models read them."""

import functools

from clip_jax.evaluation.prompts import published_prompts
from clip_jax.tokenizers.published import load_tokenizer
from dalle_jax.data.class_captions import fill
from launch.benchmarks.workload import Row, Workload, import_torch

COUNT = 4_000


def captions() -> list[str]:
    """Prompts; every fourth has a number of its own, and characters beyond ASCII, for which text is mended.

    After the warm-up both tokenizers have every word in a cache: cleaning, splitting and looking up are timed.
    """
    prompts = published_prompts("ImageNet")
    texts = [fill(template, names[0]) for template in prompts.templates[:4] for names in prompts.classes]
    return [f"{text} — no. {i * 7919}, Größe {i % 97}" if i % 4 == 0 else text for i, text in enumerate(texts)][:COUNT]


def ours() -> Workload:
    """Captions to ids by our tokenizer."""
    return Workload(functools.partial(load_tokenizer(truncate=True), captions()), items=COUNT)


def peer() -> Workload:
    """Captions to ids by open_clip's tokenizer."""
    import_torch()
    import open_clip

    return Workload(functools.partial(open_clip.get_tokenizer("ViT-B-32"), captions()), items=COUNT)


ROWS = (
    Row(
        name="tokenizer",
        shape=f"CLIP's, {COUNT} captions, one core",
        unit="texts",
        make=ours,
        make_peer=peer,
        peer="open_clip",
        reach=1.0,
    ),
)
