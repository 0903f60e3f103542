"""The structured form equals the dense one under the pattern's mask, forward and gradient; it makes no square array."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dalle_jax.nn.attention import Pattern, dense_attention, pattern_mask, structured_attention

GRIDS = [(5, 4, 4, 3), (3, 5, 7, 5), (4, 7, 3, 3), (2, 3, 5, 11), (3, 13, 11, 5)]
"""text_length, height, width, kernel: square, odd, narrow, a kernel larger than the grid, two chunks of queries."""

# Sums of at most 51 float32 products of order 1 taken in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def arrays(length, dtype=jnp.float32):
    return tuple(jax.random.normal(jax.random.key(0), (3, 2, length, 2, 8)).astype(dtype))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("pattern", list(Pattern))
def test_forward_and_gradient_equal_dense(pattern, grid):
    text_length, height, width, kernel = grid
    mask = jnp.asarray(pattern_mask(pattern, *grid))
    sizes = {"text_length": text_length, "height": height, "width": width, "kernel": kernel}

    def results(attend):
        def total(q, k, v):
            out = attend(q, k, v)
            return jnp.sum(jnp.sin(out)), out

        (_, out), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays(mask.shape[0]))
        return out, grads

    dense = jax.jit(lambda: results(lambda q, k, v: dense_attention(q, k, v, mask)))()
    structured = jax.jit(lambda: results(lambda q, k, v: structured_attention(pattern, q, k, v, **sizes)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), structured, dense)


@pytest.mark.parametrize("pattern", list(Pattern))
def test_scores_far_apart_do_not_overflow(pattern):
    q, k, v = arrays(5 + 16)
    out = structured_attention(pattern, 200 * q, 200 * k, v, text_length=5, height=4, width=4, kernel=3)
    mask = jnp.asarray(pattern_mask(pattern, 5, 4, 4, 3))
    np.testing.assert_allclose(out, dense_attention(200 * q, 200 * k, v, mask), **TOLERANCE)


def test_bfloat16_keeps_the_softmax_in_float32():
    q, k, v = arrays(5 + 16, jnp.bfloat16)
    out = structured_attention("row", q, k, v, text_length=5, height=4, width=4)
    assert out.dtype == jnp.bfloat16
    exact = dense_attention(*(x.astype(jnp.float32) for x in (q, k, v)), jnp.asarray(pattern_mask("row", 5, 4, 4)))
    # Two roundings to 8 bits: of the weights and of the result.
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=0.02, atol=0.02)


def array_sizes(compiled_text: str) -> list[int]:
    """Number of elements of every array in a compiled program's text."""
    shapes = re.findall(r"\b(?:pred|[suf]\d+|bf16)\[([\d,]+)\]", compiled_text)
    return [int(np.prod([int(n) for n in shape.split(",")], dtype=np.int64)) for shape in shapes]


def largest_array(pattern: Pattern, text_length: int, side: int) -> int:
    """Of the compiled forward pass and gradient with one head of 16."""
    x = jax.ShapeDtypeStruct((1, text_length + side * side, 1, 16), jnp.float32)

    def total(q, k, v):
        return structured_attention(pattern, q, k, v, text_length=text_length, height=side, width=side, kernel=11).sum()

    return max(array_sizes(jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2))).lower(x, x, x).compile().as_text()))


@pytest.mark.parametrize("pattern", list(Pattern))
def test_no_array_of_the_published_program_grows_as_the_square(pattern):
    text_length, side = 256, 32
    largest = largest_array(pattern, text_length, side)
    # The largest: every image position's scores over the text and, in a conv layer, six rows of keys.
    assert largest <= side**2 * (text_length + 7 * side)
    assert largest < (text_length + side**2) ** 2 / 3
    # Four times the positions; a square would be sixteen times as large, the rows that a conv layer reaches are eight.
    assert largest_array(pattern, text_length, 2 * side) < 8 * largest


def test_the_walk_would_find_a_square():
    x = jax.ShapeDtypeStruct((1, 320, 1, 8), jnp.float32)
    text = jax.jit(lambda q, k, v: dense_attention(q, k, v)).lower(x, x, x).compile().as_text()
    assert max(array_sizes(text)) >= 320**2
