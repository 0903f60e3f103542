"""What every stage's training is told: sizes, optimizer, schedule, mesh, how often to evaluate, preview and save."""

import dataclasses
import enum

from dalle_jax.config import check_at_least


class Schedule(enum.Enum):
    """Learning rate after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # to `final_learning_rate` at `decay_steps`, constant after it
    PLATEAU = "plateau"  # halved when the training loss stops falling (DALL·E App. B.2)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. Steps count updates, not micro-batches."""

    learning_rate: float
    schedule: Schedule = Schedule.COSINE
    warmup_steps: int = 0
    decay_steps: int | None = None
    """Of the cosine, warm-up included; None: the length of the run."""
    final_learning_rate: float = 0.0
    halvings: int = 5
    """Of the plateau schedule, at the most."""
    plateau_patience: int = 10
    """Windows of `plateau_window` updates without a relative gain of `plateau_threshold` before the rate is halved."""
    plateau_window: int = 1000
    plateau_threshold: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled; multiplied by the learning rate, as in PyTorch's AdamW."""
    no_decay: tuple[str, ...] = (r"bias$", r"scale$")
    """Regular expressions, searched in `a/b/c` parameter paths: what weight decay leaves alone (gains and biases)."""
    clip_norm: float | None = None
    """Global gradient norm."""
    second_moment_clip: float | None = None
    """Largest value of Adam's running variance, before it is used (DALL·E App. B.2: 5)."""
    first_moment_dtype: str = "float32"
    freeze: tuple[str, ...] = ()
    """Regular expressions, searched in `a/b/c` parameter paths: parameters that keep their values. They have no update,
    no weight decay, no optimizer sums, and no part in `clip_norm` and the reported `grad_norm`."""
    freeze_first: tuple[tuple[str, int], ...] = ()
    """Pairs of a regular expression and n: the first n entries along the first axis keep their values. Blocks of a
    stack lie along it in its parameters, so that `(("^vision/transformer/", 9),)` trains the last 3 of 12."""
    lr_scale: tuple[tuple[str, float], ...] = ()
    """Pairs of a regular expression and a factor on the learning rate; the first that is found in a path counts."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be -1: what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = 1
    """Parts with fast links inside and slow ones between: slices of a multi-slice pod. The data axis is laid over the
    slow links, and divides by this."""
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Overrides of `ShardingRules`: pairs of a logical axis and the mesh axes it is split over."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage's run. Intervals are in steps; 0 turns the thing off."""

    batch_size: int
    """Global."""
    num_steps: int
    optimizer: OptimizerConfig
    micro_batches: int = 1
    """The batch is cut into this many parts whose gradients are averaged inside the step."""
    ema_decay: float | None = None
    ema_every: int = 1
    """Updates between two steps of the average (DALL·E: 0.99 every 25)."""
    log_every: int = 10
    eval_every: int = 500
    eval_batches: int = 8
    """Held-out batches of an evaluation; 0: none is made."""
    preview_every: int = 500
    checkpoint_every: int = 1000
    keep_last: int = 2
    keep_best: int = 1
    keep_every: int = 0
    """Checkpoints at multiples of this are kept for good."""
    watchdog_seconds: float = 1800.0
    """A process that makes no step for so long (ten times as long while it compiles, evaluates or saves) prints every
    thread's stack and ends with code 76; 0: it waits for ever."""
    deterministic: bool = True
    """On a GPU, ask XLA for deterministic operations, so that a resumed run is the same run bit for bit."""

    def __post_init__(self):
        check_at_least(1, self, "batch_size", "micro_batches", "ema_every")
        intervals = ("log_every", "eval_every", "preview_every", "checkpoint_every", "keep_every")
        check_at_least(0, self, "num_steps", "eval_batches", "keep_last", "keep_best", "watchdog_seconds", *intervals)

    @property
    def initial_share(self) -> float:
        """Of the parameters' average at the end of the run, what is still its first value; 0 where none is kept."""
        return 0.0 if self.ema_decay is None else self.ema_decay ** (self.num_steps // self.ema_every)
