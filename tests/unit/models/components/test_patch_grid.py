"""Patch grid against plain loops over pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anomalib_cxr.models.components.patch_grid import PatchGrid, resize_matrix


@st.composite
def grids(draw):
    patch = draw(st.integers(1, 6))
    size = draw(st.integers(patch, 17)), draw(st.integers(patch, 17))
    return PatchGrid(size, patch, draw(st.one_of(st.none(), st.integers(1, patch))))


@settings(max_examples=40, deadline=None)
@given(grids())
def test_every_pixel_is_covered_and_patches_are_the_pixels_at_their_origin(grid):
    height, width = grid.image_size
    image = torch.arange(2 * height * width, dtype=torch.float32).view(2, 1, height, width)
    patches = grid.cut(image)
    p = grid.patch_size
    assert patches.shape == (2, grid.rows, grid.cols, 1, p, p)
    seen = torch.zeros(height, width, dtype=torch.bool)
    for i, top in enumerate(grid.tops):
        for j, left in enumerate(grid.lefts):
            assert torch.equal(patches[:, i, j], image[:, :, top : top + p, left : left + p])
            seen[top : top + p, left : left + p] = True
    assert seen.all()
    steps = np.diff(grid.tops)
    assert (steps[:-1] == grid.stride).all()
    assert (steps > 0).all()


@settings(max_examples=40, deadline=None)
@given(grids())
def test_spread_is_the_mean_of_the_patches_over_a_pixel(grid):
    scores = torch.randn(2, grid.rows, grid.cols, dtype=torch.float64)
    height, width = grid.image_size
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    for i, top in enumerate(grid.tops):
        for j, left in enumerate(grid.lefts):
            window = slice(top, top + grid.patch_size), slice(left, left + grid.patch_size)
            total[(slice(None), *window)] += scores[:, i, j].numpy()[:, None, None]
            count[window] += 1
    np.testing.assert_allclose(grid.spread(scores)[:, 0].numpy(), total / count, rtol=1e-12, atol=1e-12)
    assert grid.overlaps == bool(count.max() > 1)


def test_spread_without_overlap_copies_scores_exactly():
    scores = torch.randn(1, 3, 3)
    spread = PatchGrid((12, 12), 4).spread(scores)
    assert torch.equal(spread[0, 0], scores[0].repeat_interleave(4, 0).repeat_interleave(4, 1))


def test_pool_of_a_tiling_grid_is_adaptive_average_pooling():
    features = torch.randn(2, 5, 12, 18, dtype=torch.float64)
    pooled = PatchGrid((96, 144), 24).pool(features)
    torch.testing.assert_close(pooled.permute(0, 3, 1, 2), F.adaptive_avg_pool2d(features, (4, 6)))


@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (9, 4), (21, 21)])
def test_pool_weighs_feature_pixels_by_the_covered_area(patch, stride):
    features = torch.randn(1, 3, 5, 7, dtype=torch.float64)
    grid = PatchGrid((35, 42), patch, stride)
    # Every feature pixel painted over the 7 x 6 image pixels that it stands for, then averaged patch by patch.
    painted = features.repeat_interleave(7, 2).repeat_interleave(6, 3)
    expected = grid.cut(painted).mean((-1, -2))
    torch.testing.assert_close(grid.pool(features), expected)


def test_resize_is_the_block_mean():
    image = torch.randn(12, 12, dtype=torch.float64)
    average = resize_matrix(12, 4)
    torch.testing.assert_close(average.T @ image @ average, F.avg_pool2d(image[None], 3)[0])
    assert torch.allclose(resize_matrix(13, 5).sum(0), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "patch", "stride", "message"),
    [((10, 20), 11, None, "does not fit"), ((10, 10), 4, 5, "without a patch"), ((10, 10), 0, None, "at least 1")],
)
def test_impossible_grids_are_refused(size, patch, stride, message):
    with pytest.raises(ValueError, match=message):
        PatchGrid(size, patch, stride)


def test_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="grid is for images"):
        PatchGrid((8, 8), 4).cut(torch.zeros(1, 1, 8, 9))
