"""Folders that people hold and that are no model by themselves: each is called what it is, with what to do."""

import os
from collections.abc import Callable

from dalle_jax.errors import UserError
from dalle_jax.weights import read_settings


def refuse_other_folders(folder: str) -> None:
    """Raises `UserError` where a folder is of a known kind that is not read here."""
    if not os.path.isdir(folder):
        return
    names = sorted(os.listdir(folder))
    for kind in _KINDS:
        message = kind(folder, names)
        if message:
            raise UserError(f"{folder} {message}")


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
    found = ", ".join(os.path.join(folder, name) for name in others[:10])
    told = f"under a usual name: give the file ({found})" if others else "that are read here"
    return f"has a config.json of Hugging Face's and no weights beside it {told}"


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
