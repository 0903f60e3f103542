"""Folders that people hold and that are no model by themselves: each is called what it is, with what to do."""

import os
import re
from collections.abc import Callable, Iterable

from dalle_jax.errors import UserError
from dalle_jax.weights import NOT_DOWNLOADED, read_settings


def refuse_other_folders(folder: str) -> None:
    """Raises `UserError` where a folder is of a known kind that is not read here."""
    if not os.path.isdir(folder):
        return
    names = sorted(os.listdir(folder))
    refuse_parts(folder, names)
    for kind in _KINDS:
        message = kind(folder, names)
        if message:
            raise UserError(f"{folder} {message}")


_PARTS = (
    (
        re.compile(r"(zero_pp|bf16_zero_pp)_rank_\d+_mp_rank_\d+_\w+\.pt|zero_to_fp32\.py|global_step\d+"),
        "parts of DeepSpeed's ZeRO, none of which is a whole model: run python zero_to_fp32.py FOLDER OUT there, and "
        "give OUT",
    ),
    (
        re.compile(r"__\d+_\d+\.distcp"),
        "parts of a distributed checkpoint of PyTorch's, none of which is a whole model: run python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT, and give OUT",
    ),
)
"""Names of files that processes have written a part each into, and what to do."""


def refuse_parts(path: str, names: Iterable[str]) -> None:
    """Raises `UserError` where a file, or one of the names in a folder, is a part of a model."""
    for pattern, message in _PARTS:
        if any(pattern.fullmatch(name) for name in names):
            raise UserError(f"{path} holds {message}")


def _adapter(folder: str, names: list[str]) -> str | None:
    if "adapter_config.json" not in names:
        return None
    base = read_settings(os.path.join(folder, "adapter_config.json")).get("base_model_name_or_path")
    return (
        f"holds an adapter of PEFT's, not a model (its base is {base!r:.100}): merge them there with "
        "model.merge_and_unload().save_pretrained(OUT), and give OUT"
    )


def _sentence_transformers(folder: str, names: list[str]) -> str | None:
    if "modules.json" not in names and "config_sentence_transformers.json" not in names:
        return None
    return f"is a folder of sentence-transformers: {_give(folder, names)}"


def _pipeline(folder: str, names: list[str]) -> str | None:
    return f"is a pipeline of diffusers: {_give(folder, names)}" if "model_index.json" in names else None


def _hub_cache(folder: str, names: list[str]) -> str | None:
    if "snapshots" in names and "refs" in names:
        inner = os.path.join(folder, "snapshots")
        return f"is a model's folder in the cache of Hugging Face's hub: {_give(inner, sorted(os.listdir(inner)))}"
    models = [name for name in names if name.startswith("models--")]
    if models:
        return f"is the cache of Hugging Face's hub: give a folder in snapshots/ of one of {', '.join(models[:10])}"
    return None


def _variant(folder: str, names: list[str]) -> str | None:
    if "config.json" not in names or "model_type" not in read_settings(os.path.join(folder, "config.json")):
        return None
    others = [name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".msgpack"))]
    gone = [name for name in others if not os.path.exists(os.path.join(folder, name))]
    if gone:
        about = f"{gone[0]} is a link to nothing; {NOT_DOWNLOADED}"
        return f"has a config.json of Hugging Face's and no weights beside it: {about}"
    found = ", ".join(os.path.join(folder, name) for name in others[:10])
    told = f" under a usual name: give the file ({found})" if others else f" that are read here; {NOT_DOWNLOADED}"
    return f"has a config.json of Hugging Face's and no weights beside it{told}"


_KINDS: tuple[Callable[[str, list[str]], str | None], ...] = (
    _adapter,
    _sentence_transformers,
    _pipeline,
    _hub_cache,
    _variant,
)


def _give(folder: str, names: list[str]) -> str:
    inner = [os.path.join(folder, name) for name in names]
    models = [path for path in inner if os.path.isfile(os.path.join(path, "config.json"))]
    return f"give {' or '.join(models[:10])}" if models else "there is no folder with a config.json in it"
