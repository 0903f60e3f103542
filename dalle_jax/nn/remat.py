"""What the backward pass computes again instead of keeping it."""

import enum
from typing import Any

import flax.linen as nn
import jax


class Remat(enum.Enum):
    """What the backward pass recomputes in each layer."""

    NONE = "none"  # nothing: every intermediate is kept
    DOTS = "dots"  # everything but the results of convolutions and of matrix products without a batch dimension
    FULL = "full"  # the whole layer; only its input is kept


def _products(primitive: Any, *args: Any, **params: Any) -> Any:
    if primitive is jax.lax.conv_general_dilated_p:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)


_REMAT_POLICIES = {Remat.DOTS: _products, Remat.FULL: jax.checkpoint_policies.nothing_saveable}


def rematerialised(module: Any, remat: Remat, *, scanned: bool, static_argnums: tuple[int, ...] = ()) -> Any:
    """A class of modules whose backward pass recomputes what `remat` says.

    Args:
      module: the class.
      remat: the policy.
      scanned: whether it is all that each round of a compiled loop runs. Where no loop parts a module's recomputation
        from the rest, a barrier must: else the compiler merges it with the forward pass, or does that of several
        modules at once, and the memory that was to be saved is used again.
      static_argnums: as `nn.remat` takes them.
    """
    if remat is Remat.NONE:
        return module
    policy = _REMAT_POLICIES[remat]
    return nn.remat(module, policy=policy, prevent_cse=not scanned, static_argnums=static_argnums)
