"""Floating-point operations of a traced program, loops included: what a step executes, recomputation and all.

XLA's own count (`cost_analysis`) takes the body of a loop once. Here the traced program is walked instead: a scan
counts its body as often as it runs, and what `jax.checkpoint` computes again in the backward pass stands in the program
as often as it is computed.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """What was counted, and what could not be.

    Attributes:
      total: FLOPs of matrix products and convolutions over the global batch; a multiplication and an addition are two.
      unknown_loops: loops whose number of rounds the program does not say; their bodies are counted once.
      exact: the part of `total` whose factors are float32 and multiplied as such.
    """

    total: float
    unknown_loops: int = 0
    exact: float = 0.0

    @property
    def passes(self) -> float:
        """FLOPs of units that multiply bfloat16, which take six passes to a product of float32."""
        return self.total + 5 * self.exact

    def __add__(self, other: "FlopCount") -> "FlopCount":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return FlopCount(*(mine + yours for mine, yours in pairs))

    def times(self, count: int) -> "FlopCount":
        """Of a loop of `count` rounds."""
        return FlopCount(self.total * count, self.unknown_loops, self.exact * count)


def count_flops(program: core.ClosedJaxpr | core.Jaxpr) -> FlopCount:
    """FLOPs of matrix products and convolutions of a traced program (`jax.make_jaxpr`, `jit(f).trace(...).jaxpr`).

    Element-wise operations, reductions and gathers are not counted: on the matrix units they cost nothing. Of branches
    the most expensive one counts.
    """
    jaxpr = program.jaxpr if isinstance(program, core.ClosedJaxpr) else program
    return sum((_count(equation) for equation in jaxpr.eqns), FlopCount(0.0))


def _count(equation: Any) -> FlopCount:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
        total = _dot(equation) if name == "dot_general" else _convolution(equation)
        return FlopCount(total, exact=total if _is_exact(params["precision"]) else 0.0)
    inner = [count_flops(program) for program in inner_programs(params)]
    if name == "cond":
        return max(inner, key=lambda count: count.total)
    total = sum(inner, FlopCount(0.0))
    if name == "scan":
        return total.times(params["length"])
    if name == "while":
        return dataclasses.replace(total, unknown_loops=total.unknown_loops + (total.total > 0))
    if name == "shard_map":
        # Its body has the shapes of one device; the parameter's name differs with the version of JAX.
        axes = params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"]
        return total.times(math.prod(params["mesh"].shape[axis] for axis in axes))
    if name == "pallas_call":
        return total.times(math.prod(params["grid_mapping"].grid))
    return total


def inner_programs(params: dict[str, Any]) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    """The programs that an equation runs, whatever its primitive calls them."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, core.ClosedJaxpr | core.Jaxpr):
                yield item


def _is_exact(precision: Any) -> bool:
    return jax.lax.Precision.HIGHEST in (precision if isinstance(precision, tuple) else (precision,))


def _dot(equation: Any) -> float:
    """2 M N K of every batch entry: each output element is a sum over the contracted dimensions."""
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracting)


def _convolution(equation: Any) -> float:
    """2 per pair of an output value and a weight that reaches a real input value.

    Transposed convolutions and gradients put zeros between the inputs (`lhs_dilation`): those are not counted, nor is
    padding told apart from inputs, so that a count is exact where windows stay inside and slightly above elsewhere.
    """
    numbers, dilation = equation.params["dimension_numbers"], equation.params["lhs_dilation"]
    weights = equation.invars[1].aval.shape
    _, inputs, *window = (weights[axis] for axis in numbers.rhs_spec)
    output = math.prod(equation.outvars[0].aval.shape)
    return 2.0 * output * inputs * math.prod(window) / math.prod(dilation)
