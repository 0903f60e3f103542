"""The command line of the scripts: absl flags, every mistake one clear line."""

import importlib.util
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_dict, config_flags

from dalle_jax.errors import UserError, closest, run_main
from dalle_jax.storage import cache_folder
from dalle_jax.training.parallel.processes import initialize, run_as_one
from launch.run.process_settings import set_up_process

_log = logging.getLogger(__name__)


def define_config(optional: Sequence[str] = ()) -> Callable[[], ConfigDict]:
    """Defines `--config=FILE[:ARG]` and `--config.a.b=VALUE`; returns a function that gives the config.

    Args:
      optional: keys that hold a text or nothing, which may be given whether the file names them or not.
    """
    holder = config_flags.DEFINE_config_file("config", None, "config file, `configs/X.py` or `configs/X.py:ARG`")
    flags.FLAGS["config"].parser = _ConfigParser(optional)

    def value() -> ConfigDict:
        if holder.value is None:
            raise UserError("no config given: --config=configs/X.py (the files there are the experiments)")
        return holder.value

    return value


def config_name() -> str:
    """The config as it was asked for, `FILE[:ARG]` and what overrides it."""
    parser: Any = flags.FLAGS["config"].parser
    return " ".join([parser.argument, *_overrides("config")])


def overridden(section: str) -> set[str]:
    """Keys of a section of the config that the command line sets: `fsdp` of `mesh` by `--config.mesh.fsdp=4`."""
    return {re.split(r"[=.[]", argument.split(f".{section}.")[1])[0] for argument in _overrides(f"config.{section}")}


def _overrides(section: str) -> list[str]:
    return [argument for argument in sys.argv if re.match(rf"--?(?:no)?{re.escape(section)}\.", argument)]


class _ConfigParser(flags.ArgumentParser):
    """Loads config files in place of ml_collections' parser, which wraps what is wrong in them into other errors."""

    def __init__(self, optional: Sequence[str]):
        self._optional = optional
        self.argument = ""

    def flag_type(self) -> str:
        return "config file"

    def parse(self, argument: str) -> ConfigDict:
        self.argument = argument
        file, *preset = argument.split(":", 1)
        if not os.path.isfile(file):
            near = closest(file, map(str, Path(file).parent.glob("*.py")))
            raise UserError(f"--config={argument}: there is no file {file}{near}")
        try:
            config = _load_module(file).get_config(*preset)
        except (TypeError, ValueError) as error:
            # How dataclasses refuse a key that they do not have, and a value.
            frames = traceback.extract_tb(error.__traceback__)
            lines = [f", line {frame.lineno}" for frame in frames if frame.filename == os.path.abspath(file)]
            raise UserError(f"{file}{lines[-1] if lines else ''}: {error}") from error
        if not isinstance(config, ConfigDict):
            raise UserError(f"{file}: get_config must return a ConfigDict, not {type(config).__name__}")
        with config.unlocked():
            for key in self._optional:
                if config.get(key) is None:
                    config[key] = config_dict.placeholder(str)
        config.lock()
        _check_overrides(config, sys.argv)
        return config


def _load_module(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("config", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_overrides(config: ConfigDict, arguments: Iterable[str]) -> None:
    """Every `--config.a.b` must be there: ml_collections would say so with errors that are not told from faults."""
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=[]+)", argument)
        if not override:
            continue
        node = config
        for part in override[1].split("."):
            keys = list(node) if isinstance(node, ConfigDict) else []
            if part not in keys:
                raise UserError(f"unknown config key 'config.{override[1]}'{closest(part, keys)}")
            node = node[part]


def start(main: Callable[[], int | None], *, preemptible: bool = False, alone: bool = False) -> None:
    """Parses the command line, joins the processes of the run, runs `main` and ends; see `run_main` for the exit codes.

    Args:
      main: the script.
      preemptible: whether it answers a SIGTERM to one of several processes by saving; see `initialize`.
      alone: it is one process, also on a worker of a pod, where it would wait for the others in vain.
    """

    def run() -> int | None:
        rest = _parse()
        if rest:
            raise UserError(f"what is '{rest[0]}'? options are written --name=value; --help lists them")
        set_up_process()
        _use_compilation_cache()
        if not alone:
            initialize(preemptible)
            _check_platform()
        return main()

    run_as_one(lambda: run_main(run))


def start_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """As `start`, of a script whose options are followed by words of another kind; it is one process."""

    def run() -> int | None:
        rest = _parse()
        set_up_process()
        return main(rest)

    run_main(run)


def _use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder unless JAX is told another place."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = cache_folder()
    if cache is None:
        _log.warning("compiled programs are not kept, as there is no home directory here: set HOME or XDG_CACHE_HOME")
    else:
        jax.config.update("jax_compilation_cache_dir", str(cache / "programs"))


def _check_platform() -> None:
    """Refuses CPUs where JAX_PLATFORMS has GPUs first: where JAX sees none, it takes the next without a word."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted.split(",")[0] in ("cuda", "gpu") and jax.default_backend() == "cpu":
        raise UserError(
            f"JAX_PLATFORMS={wanted}, but there is no GPU here: give the container its GPUs (docker run --gpus=all), "
            "or set JAX_PLATFORMS=cpu to compute on CPUs"
        )


def _parse() -> list[str]:
    """Reads the options; returns what is none.

    Raises:
      UserError: one is unknown, has a value that it cannot have, is not a finite number, or is not UTF-8.
    """
    app.define_help_flags()  # `app.run` would; they print the script's docstring and its options
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.Error as error:
        raise UserError(f"{error}; --help lists the options") from error
    for name, value in flags.FLAGS.flag_values_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} must be a finite number, not {value}")
    for before, argument in zip(sys.argv, sys.argv[1:], strict=False):
        if argument not in rest:
            _check_text(f"{before}={argument}" if re.fullmatch("--?[^=]+", before) else argument)
    return rest[1:]


def _check_text(argument: str) -> None:
    """Refuses bytes that are no text, but for a path that is read: what is tokenized or written must be UTF-8."""
    if re.match(r"--?(data|prime|prompts|config\.(\w+\.)*path)=", argument):
        return
    try:
        argument.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
        raise UserError(f"{shown} is not UTF-8: write it in UTF-8") from None
