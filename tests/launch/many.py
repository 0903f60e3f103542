"""What several processes must agree on with one: batches, training, drawing, encoding.

`facts` computes it on all devices of all processes; as a program it prints them from process 0, as JSON.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from PIL import Image

from dalle_jax.codec import Body, CodecConfig, FrozenCodec, PatchConfig, Reconstruction, Relaxation
from dalle_jax.codec.task import CodecTask
from dalle_jax.data.batches import Batches
from dalle_jax.data.config import Augment, DataConfig, SourceKind, TextConfig
from dalle_jax.data.prefetch import process_rows
from dalle_jax.data.records import Record, Source
from dalle_jax.data.sources import open_splits
from dalle_jax.data.tokenizer import Tokenizer, train_tokenizer
from dalle_jax.decoder.config import DecoderConfig
from dalle_jax.decoder.task import DecoderTask
from dalle_jax.errors import UserError
from dalle_jax.nn.attention import Pattern
from dalle_jax.nn.remat import Remat
from dalle_jax.pipeline import Dalle
from dalle_jax.training.config import MeshConfig, OptimizerConfig, Schedule, TrainConfig
from dalle_jax.training.loop import train
from dalle_jax.training.parallel.consistency import check_agreement
from dalle_jax.training.parallel.mesh import make_mesh
from dalle_jax.training.parallel.processes import from_primary, gather, initialize, is_primary, run_as_one, to_host
from dalle_jax.training.parallel.sharding import ShardingRules, batch_sharding
from launch.run.config import RunConfig
from launch.run.coordination import begin, check_processes

SIZE, BATCH = 8, 8
CODEC = CodecConfig(
    codebook_size=13, body=Body.PATCH, relaxation=Relaxation.VQ, reconstruction=Reconstruction.PIXEL,
    patch=PatchConfig(4, merge=1, fine_dim=8, fine_blocks=0, token_dim=8, encoder_blocks=1, decoder_blocks=1),
)  # fmt: skip
DECODER = DecoderConfig(
    num_layers=1, num_heads=2, head_dim=8, embed_dim=16, mlp_dim=16, text_vocab_size=45, text_length=10,
    codebook_size=13, grid_size=2, patterns=(Pattern.FULL,), dropout=0.1, remat=Remat.NONE, dtype="float32",
)  # fmt: skip
TRAIN = TrainConfig(
    batch_size=BATCH, num_steps=2, optimizer=OptimizerConfig(1e-2, Schedule.CONSTANT), ema_decay=0.9, log_every=1,
    eval_every=2, eval_batches=1, preview_every=2, checkpoint_every=1,
)  # fmt: skip


class Noise(Source):
    """Twenty images of noise with captions."""

    name = "noise"

    def __len__(self):
        return 20

    def key(self, index):
        return f"key-{index}"

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 16, 3), np.uint8)
        return Record(pixels, (f"image number {index}", f"the {index}th of them"), self.key(index))


def facts(workdir: Path, mesh_config: MeshConfig) -> dict:
    """Everything that must be the same, or nearly, however many processes there are."""
    mesh, rules = make_mesh(mesh_config), ShardingRules()
    sharding = batch_sharding(mesh, rules)
    tokenizer = train_tokenizer([f"image number {i} the {i}th of them" for i in range(60)], DECODER.text_vocab_size)

    def batches_on(sharding) -> Batches:
        return Batches(
            Noise(), batch_size=BATCH, image_size=SIZE, augment=Augment.DVAE, seed=3, tokenizer=tokenizer,
            text=TextConfig(DECODER.text_length, dropout=0.2), rows=process_rows(sharding, BATCH),
        )  # fmt: skip

    def hashes(sharding) -> list[str]:
        stream = batches_on(sharding).iterate(0, sharding=sharding)
        found = [digest(to_host(next(stream))) for _ in range(3)]
        stream.close()
        return found

    rows, batches = [], batches_on(sharding)
    # As on a TPU pod: the rows of a process do not lie together.
    dealt = Mesh(np.asarray(jax.devices()).reshape(-1, 2).T.reshape(mesh.devices.shape), mesh.axis_names)
    # A model axis over all of them: every process holds every row.
    whole = Mesh(np.asarray(jax.devices()).reshape(1, 1, -1), mesh.axis_names)

    params, model_state = jax.tree.map(np.asarray, init_codec())
    codec = FrozenCodec(CODEC, params, model_state, SIZE)
    first = batches.iterate(0, sharding=sharding)
    encoded = to_host(codec.encode(next(first)["image"]))
    first.close()
    state = train(
        DecoderTask(DECODER, codec), TRAIN, mesh_config=mesh_config, batches=batches, eval_batches=batches,
        workdir=workdir, seed=7, on_row=lambda step, row: rows.append(row),
    )  # fmt: skip
    dalle = Dalle(codec, tokenizer, DECODER, state.params, mesh, rules)
    samples = dalle.generate(
        ["image number 3", "the 7th"], num_samples=10, keep=4, score_fn=brightness, max_sequences=16
    )
    return {
        "batches": hashes(sharding),
        "dealt": hashes(NamedSharding(dealt, sharding.spec)),
        "whole": hashes(NamedSharding(whole, sharding.spec)),
        "encoded": encoded.tolist(),
        "losses": [row[name] for row in rows for name in ("loss", "eval/loss") if name in row],
        "tokens": samples.tokens.tolist(),
        "indices": samples.indices.tolist(),
        "scores": samples.scores.tolist(),
    }


def init_codec():
    """Fresh, the same everywhere."""
    from flax import linen as nn

    return jax.jit(lambda key: nn.unbox(CodecTask(codec_stage(), SIZE).init(key)))(jax.random.key(1))


def codec_stage():
    from dalle_jax.codec import CodecStage

    return CodecStage(CODEC, TRAIN, Augment.NONE)


def brightness(images, caption):
    return images.astype(np.float32).mean(axis=(1, 2, 3))


def digest(batch) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(batch[name]).tobytes() for name in sorted(batch))).hexdigest()


def disagree(folder: Path) -> None:
    """Prints what each process says where process 1 has other data, another tokenizer, code or disk than process 0."""
    texts = [f"image number {i} the {i}th of them" for i in range(60)]
    tokenizers = [train_tokenizer(texts, size) for size in (40, 45)]
    mine = jax.process_index()
    for part in range(2):
        (folder / f"data_{part}").mkdir(exist_ok=True)
    if is_primary():
        for part in range(2):
            for i in range(8):
                pixels = np.random.default_rng(i + part).integers(0, 256, (12, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"data_{part}" / f"{i}.png")
                (folder / f"data_{part}" / f"{i}.txt").write_text(texts[i])
    gather(None)  # until they are there

    def run(data: int) -> RunConfig:
        where = DataConfig(source=SourceKind.FOLDER, path=str(folder / f"data_{data}"), image_size=SIZE)
        return RunConfig(where, codec=codec_stage())

    def other_code() -> None:
        facts = {"commit": "0123456", "version": str(mine)}
        with mock.patch("launch.run.coordination.code_facts", lambda: facts):
            check_processes()

    def begin_run(data: int, workdir: Path, tokenizer: Tokenizer) -> None:
        begin(run(data), open_splits(run(data).data), workdir, tokenizer)

    for name, check in {
        "data": lambda: begin_run(mine, folder / "run_1", tokenizers[0]),
        "tokenizer": lambda: begin_run(0, folder / "run_2", tokenizers[mine]),
        "code": other_code,
        "disk": lambda: begin_run(0, folder / f"run_3_of_{mine}", tokenizers[0]),
        "nothing": lambda: begin_run(0, folder / "run_4", tokenizers[0]),
    }.items():
        try:
            check()
            print("SAID", name, "agreed")
        except UserError as error:
            print("SAID", name, error)


def main() -> None:
    """`FOLDER`: prints the facts; `disagree`: process 1 holds another config; `differ FOLDER`: see `disagree`."""
    initialize(preemptible=True)
    if sys.argv[1] == "differ":
        disagree(Path(sys.argv[2]))
        return
    if sys.argv[1] == "disagree":
        rate = 1e-3 if is_primary() else 2e-3
        check_agreement({"code": {}, "config": dataclasses.replace(TRAIN, optimizer=OptimizerConfig(rate))})
        return
    assert gather({"me": jax.process_index()}) == [{"me": i} for i in range(jax.process_count())]
    assert from_primary(jax.process_index) == 0
    mesh_config = MeshConfig(slices=jax.process_count())  # each process stands for a slice of a multi-slice pod
    owners = [device.process_index for device in make_mesh(mesh_config).devices[:, 0, 0]]
    assert owners == [device.process_index for device in jax.devices()], "the data axis crosses slices last"
    found = facts(Path(sys.argv[1]), mesh_config)
    if is_primary():
        print("FACTS", json.dumps(found))


if __name__ == "__main__":
    from dalle_jax.errors import run_main
    from launch.run.process_settings import set_up_process

    set_up_process()
    run_as_one(lambda: run_main(main))
