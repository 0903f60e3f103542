"""A task that compiles in a second, and a program that trains it: what the tests of the loop run, kill and resume."""

import argparse
import dataclasses
import itertools
import os
import signal
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dalle_jax.errors import run_main
from dalle_jax.training.config import MeshConfig, OptimizerConfig, Schedule, TrainConfig
from dalle_jax.training.loop import train
from dalle_jax.training.task import Task
from launch.run.process_settings import set_up_process

WIDTH, HIDDEN = 8, 16


class TinyTask(Task):
    """Regression by a two-layer network, with noise on its inputs and a running mean of them as model state."""

    name = "tiny"

    def __init__(self, noise: float = 0.1, bad_step: int | None = None):
        self.noise, self.bad_step = noise, bad_step

    def init(self, key):
        keys = jax.random.split(key)
        boxed = nn.LogicallyPartitioned
        params = {
            "in": {
                "kernel": boxed(jax.random.normal(keys[0], (WIDTH, HIDDEN)) / WIDTH**0.5, ("embed", "mlp")),
                "bias": boxed(jnp.zeros(HIDDEN), ("mlp",)),
            },
            "out": {"kernel": boxed(jax.random.normal(keys[1], (HIDDEN, WIDTH)) / HIDDEN**0.5, ("mlp", "embed"))},
            "norm": {"scale": jnp.ones(WIDTH)},
        }
        return params, {"mean": jnp.zeros(WIDTH)}

    def apply(self, params, x):
        h = jnp.tanh(x * params["norm"]["scale"] @ params["in"]["kernel"] + params["in"]["bias"])
        return h @ params["out"]["kernel"]

    def loss(self, params, model_state, batch, *, key, step):
        x = batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)
        error = jnp.mean((self.apply(params, x) - jnp.roll(batch["x"], 1, axis=1)) ** 2)
        if self.bad_step is not None:
            error *= jnp.where(step + 1 == self.bad_step, jnp.nan, 1.0)
        state = {"mean": 0.9 * model_state["mean"] + 0.1 * batch["x"].mean(0)}
        return error, (state, {"inputs": jnp.mean(x)})

    def step_flops(self, batch_size):
        return 6.0 * batch_size * 2 * WIDTH * HIDDEN

    def evaluate(self, params, model_state, batches):
        errors = [jnp.mean((self.apply(params, b["x"]) - jnp.roll(b["x"], 1, axis=1)) ** 2) for b in batches]
        return {"loss": float(np.mean(errors))}

    def preview(self, params, model_state, batch):
        return np.zeros((8, 8, 3), np.uint8)


class TinyBatches:
    """Batch n is a function of (seed, n); `at` is called with n before it is given out."""

    def __init__(self, batch_size=16, seed=0, at=lambda n: None):
        self.batch_size, self.seed, self.at = batch_size, seed, at
        self.bad_counts, self.captions_cut, self.part_counts = {"truncated": 2}, 1, {}

    def host_batch(self, n):
        return {"x": np.random.default_rng((self.seed, n)).standard_normal((self.batch_size, WIDTH), np.float32)}

    def epoch(self, num_batches=None, *, sharding):
        return itertools.islice(self.iterate(0, sharding=sharding), num_batches)

    def iterate(self, start=0, *, sharding):
        n = start
        while True:
            self.at(n)
            yield jax.device_put(self.host_batch(n), sharding)
            n += 1


def tiny_config(num_steps=20, **changes):
    """A `TrainConfig` with every part of the state in use: average, plateau schedule, decay, bounds."""
    optimizer = changes.pop("optimizer", None) or OptimizerConfig(
        learning_rate=1e-2, schedule=Schedule.PLATEAU, warmup_steps=3, plateau_window=2, plateau_patience=1,
        plateau_threshold=0.05, weight_decay=0.1, clip_norm=1.0, second_moment_clip=5.0,
    )  # fmt: skip
    values = {"micro_batches": 2, "ema_decay": 0.9, "ema_every": 2, "log_every": 4, "eval_every": 8, "eval_batches": 2}
    values |= {"preview_every": 10, "checkpoint_every": 5} | changes
    return TrainConfig(batch_size=16, num_steps=num_steps, optimizer=optimizer, **values)


def main(args):
    def at(n):
        if n == args.kill_at:
            os.kill(os.getpid(), getattr(signal, args.signal))
        if n == args.hang_at:
            time.sleep(600)

    changes = {"checkpoint_every": args.checkpoint_every, "watchdog_seconds": args.watchdog_seconds}
    train(
        TinyTask(bad_step=args.bad_step),
        dataclasses.replace(tiny_config(args.num_steps), **changes),
        mesh_config=MeshConfig(),
        batches=TinyBatches(at=at),
        eval_batches=TinyBatches(seed=1),
        workdir=args.workdir,
        seed=7,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--num_steps", type=int, default=20)
    parser.add_argument("--checkpoint_every", type=int, default=5)
    parser.add_argument("--kill_at", type=int, help="batch at which the process gets the signal")
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--bad_step", type=int)
    parser.add_argument("--hang_at", type=int, help="batch that never comes")
    parser.add_argument("--watchdog_seconds", type=float, default=TrainConfig.watchdog_seconds)
    set_up_process()
    run_main(main, parser.parse_args())
