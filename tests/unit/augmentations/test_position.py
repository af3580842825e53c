"""Moving and scaling against rolled pixels and closed forms."""

import pytest
import torch

from anomalib_cxr.augmentations import position
from anomalib_cxr.augmentations.position import shift_and_scale


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """What is drawn for each image: right, down and size in [0, 1)."""
    rows: list[list[float]] = []
    monkeypatch.setattr(position, "uniform_draws", lambda *_: torch.tensor(rows, dtype=torch.float64))
    return rows


def test_whole_pixels_are_rolled_and_the_border_goes_on(drawn: list[list[float]]) -> None:
    images = torch.rand(3, 2, 10, 20)
    drawn.extend([[0.5, 0.5, 0.5], [0.75, 0.5, 0.5], [0.5, 0.0, 0.5]])  # stays; 2 of 20 to the right; 2 of 10 up
    still, right, up = shift_and_scale(images, shift=0.2, scale=0.1)
    torch.testing.assert_close(still, images[0])
    torch.testing.assert_close(right[:, :, 2:], images[1][:, :, :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(right[:, :, :2], images[1][:, :, :1].expand(-1, -1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(up[:, :-2], images[2][:, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(up[:, -2:], images[2][:, -1:].expand(-1, 2, -1), atol=1e-5, rtol=0)


def test_scaling_is_around_the_centre(drawn: list[list[float]]) -> None:
    """A ramp is as steep as before over the factor, also when it is moved."""
    ramp = torch.linspace(-1, 1, 100).expand(2, 1, 100, 100)
    drawn.extend([[0.5, 0.5, 0.999999], [0.75, 0.5, 0.0]])
    larger, smaller = shift_and_scale(ramp, shift=0.1, scale=0.25)[:, 0, 50, 20:80]
    torch.testing.assert_close(larger, ramp[0, 0, 0, 20:80] / 1.25, atol=1e-4, rtol=0)
    step = 2 / 99  # 5 of 100 pixels to the right
    torch.testing.assert_close(smaller, (ramp[0, 0, 0, 20:80] - 5 * step) / 0.75, atol=1e-4, rtol=0)


def test_an_image_is_moved_by_its_own_row_of_draws() -> None:
    images = torch.rand(4, 1, 32, 32)
    moved = shift_and_scale(images, 0.05, 0.05, torch.Generator().manual_seed(1))
    again = shift_and_scale(images[:2], 0.05, 0.05, torch.Generator().manual_seed(1))
    assert torch.equal(moved[:2], again)
    assert len({round(float((a - b).abs().mean()), 6) for a, b in zip(moved, images, strict=True)}) == 4
    torch.testing.assert_close(shift_and_scale(images, 0.0, 0.0), images)


def test_faults_name_themselves() -> None:
    for arguments, message in (((1.0, 0.0), "shift must"), ((0.0, -0.1), "scale must")):
        with pytest.raises(ValueError, match=message):
            shift_and_scale(torch.rand(1, 1, 8, 8), *arguments)
