"""What a work directory says of its run: read once, typed, and handed on."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from etils import epath

from dalle_jax.config import from_config_dict
from dalle_jax.data.config import DataConfig
from dalle_jax.errors import UserError
from dalle_jax.storage import as_path, path_text
from dalle_jax.training.checkpoints.workdir import read_record
from dalle_jax.training.config import MeshConfig

T = TypeVar("T")

STAGES = {"codec": "codec", "decoder": "decoder", "clip": "CLIP"}
"""Stages that come with this project, in the order of training, with what messages call their models."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as its `config.json` has it."""

    workdir: epath.Path
    code_version: str
    """Of the code that began it, or last changed its config."""
    data: DataConfig
    mesh: MeshConfig
    init_from: str | None
    """What it was fine-tuned from: another work directory, or published weights of a CLIP."""
    config: Mapping[str, Any]
    """All of the config, as plain values."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that it trains."""
        return stages_in(self.config)

    def stage(self, name: str, kind: type[T]) -> T:
        """The config of a stage.

        Args:
          name: of the stage.
          kind: its dataclass: `CodecStage`, `DecoderStage`, `ClipStage`.

        Raises:
          UserError: the run does not train it, or its config is not of this version.
        """
        if name not in self.stages:
            raise UserError(
                f"{self.workdir} has no {STAGES.get(name, name)}: train one with a config that has a `{name}` section, "
                "or name another work directory"
            )
        return from_config_dict(kind, self.config[name], f"config.{name}")

    def codec_workdir(self) -> epath.Path:
        """Where its decoder's codec is: where the run names one, in the run, or in that which it was tuned from.

        Raises:
          UserError: a work directory is missing or of another format version.
        """
        named = (self.config.get("decoder") or {}).get("codec_from")
        if named:
            return as_path(named)
        if "codec" in self.stages or not self.init_from:
            return self.workdir
        return read_run(self.init_from).codec_workdir()


def stages_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that a run's config has sections for, in order; those of other projects have `train` in them too."""
    others = (name for name, section in config.items() if isinstance(section, Mapping) and "train" in section)
    return tuple(dict.fromkeys([*(name for name in STAGES if config.get(name)), *others]))


def read_run(workdir: epath.PathLike) -> RunRecord:
    """Reads the record of a run.

    Raises:
      UserError: the directory is missing, broken, or of a format that this version does not know.
    """
    workdir = as_path(path_text(workdir))
    record = read_record(workdir)
    config = record["config"]
    return RunRecord(
        workdir,
        str(record.get("commit", "unknown")),
        from_config_dict(DataConfig, config.get("data") or {}, "config.data"),
        from_config_dict(MeshConfig, config.get("mesh") or {}, "config.mesh"),
        config.get("init_from"),
        config,
    )
