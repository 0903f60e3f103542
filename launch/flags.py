"""The command line of the scripts: absl flags, every mistake one clear line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from dalle_jax.errors import UserError, run_main


def define_config() -> Callable[[], ConfigDict]:
    """Defines `--config=FILE[:ARG]` and `--config.a.b=VALUE`; returns a function that gives the config."""
    holder = config_flags.DEFINE_config_file("config", None, "config file, `configs/X.py` or `configs/X.py:ARG`")

    def value() -> ConfigDict:
        path = next((arg.split("=", 1)[1] for arg in sys.argv if arg.startswith("--config=")), None)
        if path is None:
            raise UserError("no config given: --config=configs/X.py (the files there are the experiments)")
        config = holder.value
        if not isinstance(config, ConfigDict):
            raise UserError(f"cannot read the config {path}: is the path right? (configs/*.py, then :ARG where it has one)")
        return config

    return value


def start(main: Callable[[], int | None]) -> None:
    """Parses the command line, runs `main` and ends the process; see `run_main` for the exit codes."""

    def run() -> int | None:
        _parse()
        _use_compilation_cache()
        return main()

    run_main(run)


def _use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache folder unless JAX is told another place."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/dalle-jax/programs").expanduser()))


def _parse() -> None:
    app.define_help_flags()  # `app.run` would; they print the script's docstring and its options
    try:
        rest = flags.FLAGS(sys.argv)
    except flags.Error as error:
        raise UserError(f"{error}; --help lists the options") from error
    except AttributeError as error:
        # ml_collections' way to say that an override names a key that the config does not have.
        raise UserError(f"unknown config key in an override: {error}") from error
    except KeyError as error:
        raise UserError(f"unknown config key in an override: {error}") from error
    if len(rest) > 1:
        raise UserError(f"what is '{rest[1]}'? options are written --name=value; --help lists them")
