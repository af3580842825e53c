"""SimCLR views: what is cropped and turned, measured on coordinate images; seeds."""

import math

import pytest
import torch

from anomalib_cxr.models.multires_patch_ssl.views import SimCLRViews


def coordinates(n, side):
    """Images whose two channels hold x and y of each pixel, so that a view shows where each pixel came from."""
    axis = torch.arange(side, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack((x, y)).expand(n, 2, side, side).clone()


@pytest.mark.parametrize(("area", "degrees"), [(0.5, 0.0), (0.5, 5.0), (0.25, 30.0), (1.0, 0.0)])
def test_views_show_a_turned_square_of_the_stated_area(area, degrees):
    side = 65
    view = SimCLRViews(area, degrees).view(coordinates(64, side), torch.Generator().manual_seed(0))
    middle = side // 2
    # Steps in the source for one pixel to the right, well inside where nothing is mirrored.
    step = view[:, :, middle, middle + 1] - view[:, :, middle, middle - 1]
    dx, dy = step.unbind(1)
    scale = torch.hypot(dx, dy) / 2
    torch.testing.assert_close(scale, torch.full_like(scale, math.sqrt(area)), rtol=1e-6, atol=1e-6)
    angle = torch.rad2deg(torch.atan2(dy, dx))
    assert angle.abs().max() <= degrees + 1e-6
    if degrees:
        assert angle.max() > 0.7 * degrees
        assert angle.min() < -0.7 * degrees
    # Centres fill the square in which an unturned crop stays inside the patch, and no more.
    centre = view[:, :, middle, middle]
    reach = (1 - math.sqrt(area)) * side / 2
    offset = (centre - middle).abs()
    assert offset.max() <= reach + 1e-6
    if area < 1:
        assert offset.max() > 0.8 * reach


def test_nothing_to_do_returns_the_patches():
    patches = torch.rand(3, 1, 16, 16)
    first, second = SimCLRViews(1.0, 0.0)(patches, torch.Generator())
    torch.testing.assert_close(first, patches)
    torch.testing.assert_close(second, patches)


def test_randomness_is_a_function_of_the_generator_alone():
    patches = torch.rand(4, 1, 16, 16)
    views = SimCLRViews()
    state = torch.get_rng_state()
    first = views(patches, torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = views(patches, torch.Generator().manual_seed(7))
    other = views(patches, torch.Generator().manual_seed(8))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_values_stay_in_range_without_black_corners():
    view = SimCLRViews(0.9, 20).view(torch.full((16, 1, 32, 32), 0.75), torch.Generator().manual_seed(0))
    torch.testing.assert_close(view, torch.full_like(view, 0.75))


@pytest.mark.parametrize("area", [0, 1.5, (0.6, 0.5), -1])
def test_impossible_areas_are_refused(area):
    with pytest.raises(ValueError, match="crop_area"):
        SimCLRViews(area)


def test_negative_rotation_is_refused():
    with pytest.raises(ValueError, match="degrees"):
        SimCLRViews(degrees=-1)
