"""Poses against pixels turned by hand and kornia's warp, exposures against the power that they are."""

import math

import pytest
import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine

from anomalib_cxr.augmentations.pose_and_exposure import POSE_DRAWS, pose_and_expose
from anomalib_cxr.augmentations.position import move

MIDDLE, LAST = 0.5, 1 - 1e-9


def test_a_quarter_turn_is_rot90_and_goes_counter_clockwise() -> None:
    images = torch.rand(2, 1, 16, 16)
    one = torch.ones(2)
    turned = move(images, one, 0 * one, 0 * one, torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(turned[0, 0], torch.rot90(images[0, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned[1, 0], torch.rot90(images[1, 0], -1), atol=1e-5, rtol=0)


def test_a_turn_keeps_lengths_on_images_that_are_not_square() -> None:
    image = torch.zeros(1, 1, 20, 40)
    image[0, 0, 10, 28] = 1  # 8.5 pixels right of the centre, half a pixel below it
    one = torch.ones(1)
    turned = move(image, one, 0 * one, 0 * one, 90 * one)[0, 0]
    assert divmod(int(turned.argmax()), 40) == (1, 20)
    assert turned.max() == pytest.approx(1, abs=1e-4)


def test_poses_are_those_of_another_implementation() -> None:
    coarse = torch.rand(6, 1, 8, 10)
    images = torch.nn.functional.interpolate(coarse, (40, 50), mode="bicubic").clamp(0, 1)
    uniform = torch.rand(6, POSE_DRAWS, dtype=torch.float64)
    uniform[:, 4] = MIDDLE  # exposure as it is
    found = pose_and_expose(images, uniform, 1.5)
    centre = torch.tensor([[24.5, 19.5]]).expand(6, 2)
    size = 1.18 ** (2 * uniform[:, 1] - 1)
    angle = 1.5 * 8 * (2 * uniform[:, 0] - 1)
    share = 1.5 * 0.05 * (2 * uniform[:, 2:4] - 1) * torch.tensor([50.0, 40.0])
    # kornia's matrix turns clockwise.
    turned = get_affine_matrix2d(torch.zeros(6, 2), centre, size[:, None].float().expand(6, 2), -angle.float())
    moved = torch.eye(3).repeat(6, 1, 1)
    moved[:, :2, 2] = share.float()
    expected = warp_affine(images, (moved @ turned)[:, :2], (40, 50), padding_mode="border", align_corners=True)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_the_middle_of_all_draws_changes_nothing_and_the_ends_are_the_limits() -> None:
    image = torch.rand(1, 3, 24, 24)
    torch.testing.assert_close(pose_and_expose(image, torch.full((1, 5), MIDDLE)), image)
    grey = torch.full((2, 1, 8, 8), 0.3)
    draws = torch.tensor([[MIDDLE] * 4 + [LAST], [MIDDLE] * 4 + [0.0]], dtype=torch.float64)
    bright, dark = pose_and_expose(grey, draws)[:, 0, 0, 0].tolist()
    assert bright == pytest.approx(0.3**1.25, rel=1e-5)
    assert dark == pytest.approx(0.3**0.8, rel=1e-5)
    twice = pose_and_expose(grey[:1], draws[:1], 2)[0, 0, 0, 0].item()
    assert twice == pytest.approx(0.3**1.5, rel=1e-5)
    ramp = torch.linspace(0, 1, 101).expand(1, 1, 101, 101)
    larger = pose_and_expose(ramp, torch.tensor([[MIDDLE, LAST, MIDDLE, MIDDLE, MIDDLE]], dtype=torch.float64))
    steps = larger[0, 0, 50, 20:80].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 0.01 / 1.12), atol=1e-5, rtol=0)
    right = pose_and_expose(ramp, torch.tensor([[MIDDLE, MIDDLE, LAST, MIDDLE, MIDDLE]], dtype=torch.float64))
    assert right[0, 0, 50, 50].item() == pytest.approx(0.5 - 0.05 * 1.01, abs=1e-4)
    upright = torch.zeros(1, 1, 101, 101)
    upright[..., 50:] = 1  # an upright edge leans by as much as it is turned
    leaning = pose_and_expose(upright, torch.tensor([[LAST, MIDDLE, MIDDLE, MIDDLE, MIDDLE]], dtype=torch.float64))
    first, last = ((leaning[0, 0, row] < 0.5).sum().item() for row in (10, 90))
    assert math.degrees(math.atan2(last - first, 80)) == pytest.approx(8, abs=0.8)
