"""What the processes of a run do together before it begins: compare what they hold, and open the work directory."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from clip_jax.tokenizers.published import CaptionTokenizer
from clip_jax.tokenizers.run_tokenizer import has_tokenizer, write_tokenizer
from dalle_jax.data.records import Source
from dalle_jax.data.tokenizer import Tokenizer
from dalle_jax.errors import UserError
from dalle_jax.training.checkpoints.workdir import open_workdir
from dalle_jax.training.parallel.consistency import check_agreement, code_facts, command_facts
from dalle_jax.training.parallel.processes import from_primary, gather
from launch.run.config import EfficiencyConfig, RunConfig
from launch.run.data_record import fingerprints, keep_data

AnyTokenizer = Tokenizer | CaptionTokenizer


def check_processes(**facts: Any) -> None:
    """Compares code, command line and whatever else decides what a script does between the processes of a run.

    Call it first of all that touches a device, on every process; see `check_agreement`.
    """
    if jax.distributed.is_initialized():
        check_agreement({"code": code_facts(), "command": command_facts(sys.argv[1:])} | facts)


def begin(
    config: RunConfig | EfficiencyConfig,
    sources: Mapping[str, Source],
    workdir: epath.Path,
    tokenizer: AnyTokenizer | None,
) -> None:
    """Compares the data, opens the work directory, and keeps the tokenizer there; process 0 alone writes.

    Data that are not those of the run's last start are warned of; see `keep_data`.

    Args:
      config: what the work directory keeps.
      sources: what is read, by split.
      workdir: the folder, on a file system that all processes share.
      tokenizer: of the run.

    Raises:
      UserError: see `check_agreement` and `open_workdir`; or another process does not see the folder.
    """
    data = fingerprints(sources)
    check_agreement({"data set": data, "tokenizer": tokenizer.fingerprint if tokenizer is not None else ""})

    def write() -> bool:
        open_workdir(workdir, config)
        if tokenizer is not None and not has_tokenizer(workdir):
            write_tokenizer(tokenizer, workdir)
        keep_data(workdir, data)
        return True

    from_primary(write)
    require_shared(workdir / "config.json")


def require_shared(file: epath.Path) -> None:
    """Whether every process sees a file that process 0 has written.

    Raises:
      UserError: on every process, where one does not.
    """
    seen = gather(file.exists())
    if not all(seen):
        raise UserError(
            f"process {seen.index(False)} does not see {file.parent}, where process 0 writes: name a folder that all "
            "hosts share, or a gs:// path"
        )
