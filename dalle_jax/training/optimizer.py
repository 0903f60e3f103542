"""AdamW as the papers have it: schedules, plateau halving, weight-decay mask, and a bound on the second moment; and
what fine-tuning asks of it: parameters that are frozen or learn at a rate of their own."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dalle_jax.errors import UserError
from dalle_jax.training.config import OptimizerConfig, Schedule
from dalle_jax.training.freezing import Freezing, check_found, check_patterns
from dalle_jax.training.trees import is_box, named_leaves, path_name


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformationExtraArgs:
    """Gradient clip, Adam, decoupled weight decay and learning rate, in that order.

    Args:
      config: see `OptimizerConfig`.
      num_steps: length of the run in updates, over which a cosine without `decay_steps` falls.

    Returns:
      A transformation. Its `init` takes all parameters, in boxes or not, and raises a `UserError` where a pattern of
      the config finds none; its `update` takes the trained part of them (`Freezing.trained`), their gradients, and the
      training loss of the step as `value=` (the plateau rule reads it). Its state is all that the schedule remembers,
      so that a restored state goes on where it stopped.
    """
    _check(config)
    freezing = Freezing.of(config)
    parts = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm is not None else optax.identity(),
        _scale_by_adam(config),
        optax.add_decayed_weights(config.weight_decay, lambda params: decay_mask(params, config.no_decay))
        if config.weight_decay
        else optax.identity(),
        optax.scale_by_learning_rate(make_schedule(config, num_steps)),
    ]
    if config.schedule is Schedule.PLATEAU:
        parts.append(
            optax.contrib.reduce_on_plateau(
                factor=0.5,
                patience=config.plateau_patience,
                rtol=config.plateau_threshold,
                accumulation_size=config.plateau_window,
                min_scale=0.5**config.halvings,
            )
        )
    if config.lr_scale:
        parts.append(_scale_by_path(config.lr_scale))
    chain = optax.with_extra_args_support(optax.chain(*parts))

    def init(params: Any) -> Any:
        freezing.check(params)
        trained = freezing.trained(params)
        check_found("lr_scale", tuple(pattern for pattern, _ in config.lr_scale), named_leaves(trained, is_leaf=is_box))
        return chain.init(trained)

    return optax.GradientTransformationExtraArgs(init, chain.update)


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates made so far, plateau halving aside.

    The update that brings the count to k uses the rate of k: warm-up is a line from 0 at 0 that reaches the peak with
    update `warmup_steps`, and the cosine reaches `final_learning_rate` with update `decay_steps`, so that no update
    is spent at rate 0.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = optax.constant_schedule(peak)
    if config.schedule is Schedule.COSINE:
        decay = (num_steps if config.decay_steps is None else config.decay_steps) - warmup
        if decay > 0:
            rest = optax.cosine_decay_schedule(peak, decay, alpha=config.final_learning_rate / peak if peak else 0.0)
        elif config.decay_steps is not None:
            raise UserError(f"optimizer.decay_steps ({config.decay_steps}) must exceed warmup_steps ({warmup})")
    schedule = rest
    if warmup:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])
    return lambda count: schedule(count + 1)


def new_course(
    before: OptimizerConfig, steps_before: int, now: OptimizerConfig, steps_now: int, done: int
) -> str | None:
    """What the rate of a run will do that goes on for another length, where that is not what it did until now.

    A cosine lies over the length of the run, so that one that had fallen rises again; or it has ended for good.

    Args:
      before, steps_before: the optimizer and the length that the first `done` updates were made with.
      now, steps_now: those that the others will be made with.
      done: updates.

    Returns:
      A sentence; None where the rate goes on as it was going to, or there is nothing left to do.
    """
    changed = (before.decay_steps, steps_before) != (now.decay_steps, steps_now)
    # While a run warms up no cosine has begun, and what its length will be is the run's own business.
    if now.schedule is not Schedule.COSINE or not changed or not max(1, now.warmup_steps) <= done < steps_now:
        return None
    old, new = make_schedule(before, steps_before), make_schedule(now, steps_now)
    counts = ((old, done - 1), (old, done), (new, done), (new, steps_now - 1))
    last, planned, after, end = (jnp.asarray(rate(count)).item() for rate, count in counts)
    ended = done >= (before.decay_steps or steps_before)
    if not ended and abs(after - planned) <= 0.01 * now.learning_rate:
        return None
    if abs(after - last) <= 0.01 * now.learning_rate and ended:
        course = f"stays at {last:.2g}, to which the cosine has fallen"
    else:
        course = f"goes from {last:.2g} to {after:.2g} with the next update, and falls from there to {end:.2g}"
    return (
        f"after {done:,} steps of a run of {steps_before:,}, which is now one of {steps_now:,}, the learning rate "
        f"{course}: 'Longer runs' in docs/configs.md says how to go on well"
    )


def learning_rate(config: OptimizerConfig, num_steps: int, step: jax.Array, opt_state: Any) -> jax.Array:
    """The rate, float32, that update `step` (counted from 0) used; `opt_state` is the state after that update."""
    rate = jnp.asarray(make_schedule(config, num_steps)(step), jnp.float32)
    if config.schedule is Schedule.PLATEAU:
        rate = rate * _plateau_state(opt_state).scale
    return rate


def _plateau_state(opt_state: Any) -> optax.contrib.ReduceLROnPlateauState:
    def is_it(state) -> bool:
        return isinstance(state, optax.contrib.ReduceLROnPlateauState)

    (state,) = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=is_it) if is_it(leaf)]
    return state


def decay_mask(params: Any, no_decay: tuple[str, ...]) -> Any:
    """True for each parameter that weight decay shrinks: those whose `a/b/c` path no pattern of `no_decay` finds."""
    patterns = [re.compile(pattern) for pattern in no_decay]

    def decays(path, _) -> bool:
        return not any(pattern.search(path_name(path)) for pattern in patterns)

    return jax.tree_util.tree_map_with_path(decays, params)


def _check(config: OptimizerConfig) -> None:
    if config.first_moment_dtype not in ("float32", "bfloat16"):
        raise UserError(f"optimizer.first_moment_dtype is '{config.first_moment_dtype}': use 'float32' or 'bfloat16'")
    if config.schedule is Schedule.PLATEAU and not 0 < config.plateau_threshold <= 1:
        raise UserError(f"optimizer.plateau_threshold must be in (0, 1], not {config.plateau_threshold}")
    if config.schedule is Schedule.PLATEAU and min(config.plateau_patience, config.plateau_window) < 1:
        raise UserError("optimizer.plateau_patience and optimizer.plateau_window must be at least 1")
    check_patterns("no_decay", config.no_decay)
    check_patterns("lr_scale", tuple(pattern for pattern, _ in config.lr_scale))


def _scale_by_path(factors: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies the update of a parameter by the factor of the first pattern that its path has."""

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        found = (factor for pattern, factor in factors if re.search(pattern, path_name(path)))
        return update * next(found, 1.0)

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def _scale_by_adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam; with `second_moment_clip`, its running variance is bounded as DALL·E's (App. B.2).

    The bound falls on the running estimate, before its bias correction, and the bounded estimate is both what this
    update divides by and what the next one starts from.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon, mu_dtype=config.first_moment_dtype)
    if config.second_moment_clip is None:
        return adam
    bound = config.second_moment_clip

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, config.b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, config.b2, 2)
        nu = jax.tree.map(lambda v: jnp.minimum(v, bound), nu)
        mu_hat = optax.tree.bias_correction(mu, config.b1, count)
        nu_hat = optax.tree.bias_correction(nu, config.b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.epsilon), mu_hat, nu_hat)
        mu = optax.tree.cast(mu, jnp.dtype(config.first_moment_dtype))
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(adam.init, update)
