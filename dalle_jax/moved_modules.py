"""Modules by their names of before, for one version: each import of one warns and gives the module that it has become.

A finder in front of Python's own, which answers to the names in the table alone.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from typing import Any

MOVED = {
    "clip_jax.accumulation": "clip_jax.losses.accumulation",
    "clip_jax.added_tokens": "clip_jax.tokenizers.added_tokens",
    "clip_jax.bpe_table": "clip_jax.tokenizers.bpe_table",
    "clip_jax.cleaning": "clip_jax.tokenizers.cleaning",
    "clip_jax.features": "clip_jax.evaluation.features",
    "clip_jax.handle": "clip_jax.clip",
    "clip_jax.initializers": "clip_jax.towers.initializers",
    "clip_jax.linear_probe": "clip_jax.evaluation.linear_probe",
    "clip_jax.metrics": "clip_jax.evaluation.metrics",
    "clip_jax.one_tower": "clip_jax.weights.one_tower",
    "clip_jax.pictures": "clip_jax.preprocessing.images",
    "clip_jax.positions": "clip_jax.towers.positions",
    "clip_jax.preprocessing_hf": "clip_jax.preprocessing.hf",
    "clip_jax.preprocessing_open_clip": "clip_jax.preprocessing.open_clip",
    "clip_jax.prompts": "clip_jax.evaluation.prompts",
    "clip_jax.resnet": "clip_jax.towers.resnet",
    "clip_jax.retrieval": "clip_jax.evaluation.retrieval",
    "clip_jax.rows": "clip_jax.tokenizers.token_checks",
    "clip_jax.run_tokenizer": "clip_jax.tokenizers.run_tokenizer",
    "clip_jax.saving": "clip_jax.weights.export",
    "clip_jax.siglip": "clip_jax.towers.siglip",
    "clip_jax.sigmoid_loss": "clip_jax.losses.sigmoid",
    "clip_jax.text": "clip_jax.towers.text",
    "clip_jax.text_ends": "clip_jax.tokenizers.text_ends",
    "clip_jax.vision": "clip_jax.towers.vit",
    "clip_jax.weights_big_vision": "clip_jax.weights.big_vision",
    "clip_jax.weights_flax": "clip_jax.weights.flax",
    "clip_jax.weights_folders": "clip_jax.weights.folders",
    "clip_jax.weights_hf": "clip_jax.weights.hf",
    "clip_jax.weights_open_clip": "clip_jax.weights.open_clip",
    "clip_jax.weights_openai": "clip_jax.weights.openai",
    "clip_jax.weights_resnet": "clip_jax.weights.resnet",
    "clip_jax.weights_siglip": "clip_jax.weights.siglip",
    "clip_jax.weights_timm": "clip_jax.weights.timm",
    "clip_jax.zero_shot": "clip_jax.evaluation.zero_shot",
    "dalle_jax.codec.codec_task": "dalle_jax.codec.task",
    "dalle_jax.codec.conv_body": "dalle_jax.codec.conv_backbone",
    "dalle_jax.codec.patch_body": "dalle_jax.codec.patch_backbone",
    "dalle_jax.codec.pinned": "dalle_jax.codec.compatibility",
    "dalle_jax.codec.weights_dvae": "dalle_jax.codec.weights.dvae",
    "dalle_jax.codec.weights_vqgan": "dalle_jax.codec.weights.vqgan",
    "dalle_jax.data.area": "dalle_jax.data.images.area",
    "dalle_jax.data.bare_image": "dalle_jax.data.images.bare_image",
    "dalle_jax.data.class_folder": "dalle_jax.data.readers.class_folder",
    "dalle_jax.data.decode": "dalle_jax.data.images.decode",
    "dalle_jax.data.delimited": "dalle_jax.data.readers.delimited",
    "dalle_jax.data.encoded_folder": "dalle_jax.data.encoded.folder",
    "dalle_jax.data.encoded_writer": "dalle_jax.data.encoded.writer",
    "dalle_jax.data.folder": "dalle_jax.data.readers.folder",
    "dalle_jax.data.grid": "dalle_jax.data.images.grid",
    "dalle_jax.data.layouts": "dalle_jax.data.readers.layouts",
    "dalle_jax.data.listing": "dalle_jax.data.readers.listing",
    "dalle_jax.data.names": "dalle_jax.data.readers.file_names",
    "dalle_jax.data.orientation": "dalle_jax.data.images.orientation",
    "dalle_jax.data.parquet": "dalle_jax.data.readers.parquet",
    "dalle_jax.data.pictures": "dalle_jax.data.images.arrays",
    "dalle_jax.data.tables": "dalle_jax.data.readers.tables",
    "dalle_jax.data.tar": "dalle_jax.data.readers.tar",
    "dalle_jax.data.tar_header": "dalle_jax.data.readers.tar_header",
    "dalle_jax.data.tar_index": "dalle_jax.data.readers.webdataset_index",
    "dalle_jax.data.tfds": "dalle_jax.data.readers.tfds",
    "dalle_jax.data.transforms": "dalle_jax.data.images.transforms",
    "dalle_jax.data.webdataset": "dalle_jax.data.readers.webdataset",
    "dalle_jax.nn.apart": "dalle_jax.nn.cpu_decoding",
    "dalle_jax.training.agreement": "dalle_jax.training.parallel.consistency",
    "dalle_jax.training.checkpoint": "dalle_jax.training.checkpoints.manager",
    "dalle_jax.training.checksums": "dalle_jax.training.checkpoints.checksums",
    "dalle_jax.training.chips": "dalle_jax.training.telemetry.chips",
    "dalle_jax.training.clock": "dalle_jax.training.telemetry.clock",
    "dalle_jax.training.determinism": "dalle_jax.training.parallel.determinism",
    "dalle_jax.training.distributed": "dalle_jax.training.parallel.processes",
    "dalle_jax.training.ledger": "dalle_jax.training.telemetry.heartbeat",
    "dalle_jax.training.memory": "dalle_jax.training.telemetry.memory",
    "dalle_jax.training.mesh": "dalle_jax.training.parallel.mesh",
    "dalle_jax.training.metrics": "dalle_jax.training.telemetry.writers",
    "dalle_jax.training.profiler": "dalle_jax.training.telemetry.profiler",
    "dalle_jax.training.report": "dalle_jax.training.telemetry.rows",
    "dalle_jax.training.sharding": "dalle_jax.training.parallel.sharding",
    "dalle_jax.training.signals": "dalle_jax.training.parallel.preemption",
    "dalle_jax.training.speed": "dalle_jax.training.telemetry.speed",
    "dalle_jax.training.starts": "dalle_jax.training.telemetry.attempts",
    "dalle_jax.training.watchdog": "dalle_jax.training.telemetry.watchdog",
    "dalle_jax.training.workdir": "dalle_jax.training.checkpoints.workdir",
    "launch.accelerators": "launch.cluster.accelerators",
    "launch.allocator": "launch.run.allocator",
    "launch.base": "launch.run.initialization",
    "launch.bench_rows": "launch.benchmarks",
    "launch.bench_rows.clip": "launch.benchmarks.clip",
    "launch.bench_rows.codec": "launch.benchmarks.codec",
    "launch.bench_rows.contrastive": "launch.benchmarks.contrastive",
    "launch.bench_rows.decoder": "launch.benchmarks.decoder",
    "launch.bench_rows.elsewhere": "launch.benchmarks.subprocess_workload",
    "launch.bench_rows.inputs": "launch.benchmarks.inputs",
    "launch.bench_rows.loading": "launch.benchmarks.loading",
    "launch.bench_rows.reading": "launch.benchmarks.reading",
    "launch.bench_rows.text": "launch.benchmarks.text",
    "launch.bench_rows.timing": "launch.benchmarks.timing",
    "launch.bench_rows.training": "launch.benchmarks.training",
    "launch.bench_rows.workload": "launch.benchmarks.workload",
    "launch.caption_texts": "launch.run.caption_texts",
    "launch.chaos_bench": "launch.fault_injection.testbed",
    "launch.commands": "launch.cluster.command_checks",
    "launch.curves": "launch.monitoring.curves",
    "launch.data_path": "launch.run.source_kind",
    "launch.efficiency_report": "launch.evaluation.efficiency_report",
    "launch.eval_data": "launch.evaluation.datasets",
    "launch.faults": "launch.fault_injection.faults",
    "launch.flags": "launch.cli",
    "launch.health": "launch.monitoring.health",
    "launch.kept_data": "launch.run.data_record",
    "launch.line_plot": "launch.monitoring.line_plot",
    "launch.plot_axes": "launch.monitoring.plot_axes",
    "launch.process": "launch.run.process_settings",
    "launch.processes": "launch.cluster.local_group",
    "launch.quiet_orbax": "launch.run.orbax_logging",
    "launch.run_config": "launch.run.config",
    "launch.run_health": "launch.monitoring.run_health",
    "launch.stages": "launch.run.stages",
    "launch.starting": "launch.run.startup",
    "launch.storm": "launch.fault_injection.runner",
    "launch.suites": "launch.evaluation",
    "launch.suites.class_names": "launch.evaluation.class_names",
    "launch.suites.classification": "launch.evaluation.classification",
    "launch.suites.linear_probe": "launch.evaluation.linear_probe",
    "launch.suites.results": "launch.evaluation.results",
    "launch.suites.retrieval": "launch.evaluation.retrieval",
    "launch.suites.shapes": "launch.evaluation.shapes",
    "launch.suites.zero_shot": "launch.evaluation.zero_shot",
    "launch.supervise": "launch.cluster.supervise",
    "launch.tar_shards": "dalle_jax.data.readers.webdataset_writer",
    "launch.together": "launch.run.coordination",
}
"""Names of 0.1.0, and those of today. To be removed with 0.3."""


class _Loader(importlib.abc.Loader):
    """Gives the module of today in the place of a new one."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        self._module = importlib.import_module(MOVED[spec.name])
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put that of the old name there


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Any, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MOVED:
            return None
        warnings.warn(f"{fullname} is {MOVED[fullname]} now", FutureWarning, stacklevel=2)
        return importlib.machinery.ModuleSpec(fullname, _Loader())


def install() -> None:
    """Makes the old names importable; a second call does nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
