"""The attention patterns against the published figure and against their own words."""

import numpy as np
import pytest

from dalle_jax.nn.attention import Pattern, attended_pairs, band_offsets, conv_offsets, pattern_mask, published_schedule

FIGURE = {"row": {0, 1, 2, 3, 4}, "column": {0, 4, 8, 12}, "conv": {0, 1, 3, 4, 5, 7}}
"""Offsets query - key in the 4x4 image part of the paper's Fig. 11 (conv: 3x3 kernel)."""


@pytest.mark.parametrize("pattern", FIGURE)
def test_masks_equal_the_published_figure(pattern):
    mask = pattern_mask(pattern, text_length=6, height=4, width=4, kernel=3)
    assert mask.shape == (22, 22) and mask.dtype == bool
    expected = np.zeros((22, 22), bool)
    for query in range(22):
        for key in range(22):
            if query < 6:
                expected[query, key] = key <= query
            else:
                expected[query, key] = key < 6 or query - key in FIGURE[pattern]
    np.testing.assert_array_equal(mask, expected)


def test_full_is_causal_over_the_whole_stream():
    mask = pattern_mask(Pattern.FULL, text_length=3, height=2, width=5)
    np.testing.assert_array_equal(mask, np.tril(np.ones((13, 13), bool)))


def test_published_conv_kernel_has_66_offsets():
    offsets = conv_offsets(32, 11)
    rows = {32 * a + b for a in range(1, 6) for b in range(-5, 6)}
    assert set(offsets) == {0, 1, 2, 3, 4, 5} | rows | {187, 188, 189, 190, 191}
    assert len(offsets) == 66


@pytest.mark.parametrize("kernel", [0, 1, 2, 10, -3])
def test_conv_refuses_a_kernel_without_a_centre(kernel):
    with pytest.raises(ValueError, match="odd kernel"):
        pattern_mask("conv", 2, 4, 4, kernel)


def test_unknown_pattern_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'column'"):
        pattern_mask("colum", 2, 4, 4)


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize(("height", "width"), [(3, 7), (7, 3), (1, 4), (5, 1)])
def test_every_mask_is_causal_and_sees_itself(pattern, height, width):
    mask = pattern_mask(pattern, 4, height, width, kernel=5)
    assert not np.triu(mask, 1).any()
    assert mask.diagonal().all()


def test_published_schedule():
    schedule = published_schedule(64)
    assert len(schedule) == 64
    assert [i for i, p in enumerate(schedule, 1) if p is Pattern.COLUMN] == list(range(2, 63, 4))
    assert [i for i, p in enumerate(schedule, 1) if p is Pattern.CONV] == [64]
    assert sum(p is Pattern.ROW for p in schedule) == 47
    assert published_schedule(1) == (Pattern.CONV,)


def test_attended_pairs_counts_the_masks():
    patterns = (Pattern.ROW, Pattern.COLUMN, Pattern.ROW)
    expected = sum(pattern_mask(p, 3, 4, 4).sum() for p in patterns)
    assert attended_pairs(patterns, 3, 4, 4) == expected


def test_the_former_name_of_offsets_still_answers():
    with pytest.warns(FutureWarning, match="offsets"):
        assert band_offsets(Pattern.CONV, 32) == conv_offsets(32)
