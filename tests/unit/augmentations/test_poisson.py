"""Interpolation of pairs: against a sparse solver of the definition, closed forms, and the paper's distributions."""

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from scipy.sparse.linalg import spsolve

from anomalib_cxr.augmentations import BlendParameters, PatchInterpolation, apply_interpolation, pasting, poisson

UNLIKELY = 1e-3
#: Top, left, height and width of rectangles in images of 24 x 31 pixels.
RECTANGLES = [
    (1, 1, 22, 29),
    (5, 8, 7, 12),
    (9, 3, 1, 17),
    (2, 20, 15, 1),
    (11, 11, 1, 1),
    (1, 25, 4, 5),
    (18, 2, 5, 8),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(count: int = len(RECTANGLES), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 1, 24, 31, generator=seeded(1), dtype=torch.float64).to(dtype)


def parameters(alpha: list[float] | float, rectangles=RECTANGLES) -> BlendParameters:
    count = len(rectangles)
    boxes = torch.tensor(rectangles).T
    alphas = torch.tensor([alpha] * count if isinstance(alpha, float) else alpha, dtype=torch.float64)
    still = torch.zeros(count, dtype=torch.int64)
    return BlendParameters((torch.arange(count) + 1) % count, *boxes, alphas, still, still)


def solved(own: np.ndarray, rectangle: tuple[int, ...], wanted) -> np.ndarray:
    """The Poisson equation pixel by pixel: the sum of u(p) - u(q) over the neighbours q is that of wanted(p, q)."""
    top, left, height, width = rectangle
    number = {(y, x): i for i, (y, x) in enumerate(np.ndindex(height, width))}
    number = {(y + top, x + left): i for (y, x), i in number.items()}
    matrix, right = sparse.lil_matrix((len(number), len(number))), np.zeros(len(number))
    for p, i in number.items():
        for q in ((p[0] - 1, p[1]), (p[0] + 1, p[1]), (p[0], p[1] - 1), (p[0], p[1] + 1)):
            matrix[i, i] += 1
            right[i] += wanted(p, q)
            if q in number:
                matrix[i, number[q]] -= 1
            else:
                right[i] += own[q]
    out = own.copy()
    out[top : top + height, left : left + width] = np.atleast_1d(spsolve(matrix.tocsr(), right)).reshape(height, width)
    return out


def mixed(own: np.ndarray, other: np.ndarray, alpha: float):
    def wanted(p: tuple[int, int], q: tuple[int, int]) -> float:
        mine, theirs = (1 - alpha) * (own[p] - own[q]), alpha * (other[p] - other[q])
        return mine if abs(mine) > abs(theirs) else theirs

    return wanted


@pytest.mark.parametrize("whole_batch", [False, True])
def test_the_poisson_solution_is_that_of_a_sparse_solver(whole_batch, monkeypatch):
    if whole_batch:  # how a GPU does it
        whole = lambda x, _: [pasting.Window(slice(0, len(x)), slice(0, x.shape[2]), slice(0, x.shape[3]))]  # noqa: E731
        monkeypatch.setattr(poisson, "windows", whole)
    images = sample()
    alphas = [0.05, 0.3, 0.5, 0.7, 0.95, 0.2, 0.8]
    pasted = apply_interpolation(images, parameters(alphas))
    low, high = float(images.min()), float(images.max())
    for i, (rectangle, alpha) in enumerate(zip(RECTANGLES, alphas, strict=True)):
        own, other = images[i, 0].numpy(), images[(i + 1) % len(images), 0].numpy()
        expected = solved(own, rectangle, mixed(own, other, alpha)).clip(low, high)
        np.testing.assert_allclose(pasted.image[i, 0].numpy(), expected, rtol=0, atol=1e-10)
        label = alpha * (np.abs(expected - own) > 1e-3)
        np.testing.assert_array_equal(pasted.mask[i, 0].numpy(), label)
        assert label.max() == alpha


def test_results_beyond_the_range_of_the_batch_are_cut_off():
    y, x = np.mgrid[:24, :31]
    bump = np.exp(-((y - 12) ** 2 + (x - 15) ** 2) / 20)
    images = torch.from_numpy(np.stack([0.7 + 0 * bump, bump]))[:, None]
    found = apply_interpolation(images, parameters(1.0, [(4, 4, 16, 22)] * 2)).image[0, 0].numpy()
    uncut = solved(0.7 + 0 * bump, (4, 4, 16, 22), lambda p, q: bump[p] - bump[q])
    assert uncut.max() > 1.6
    np.testing.assert_allclose(found, uncut.clip(max=1), atol=1e-10)


def test_share_one_is_the_classic_seamless_clone():
    """Pérez et al. 2003, equation 10: the source, plus the membrane spanned by the difference at the border."""
    images = 0.1 * sample()
    images[0, 0, 0, :2] = torch.tensor([-9.0, 9.0])  # a range so wide that nothing is cut off
    found = apply_interpolation(images, parameters(1.0)).image
    for i, (top, left, height, width) in enumerate(RECTANGLES):
        own, other = images[i, 0].numpy(), images[(i + 1) % len(images), 0].numpy()
        membrane = solved(own - other, (top, left, height, width), lambda p, q: 0.0)
        inside = (slice(top, top + height), slice(left, left + width))
        np.testing.assert_allclose(found[i, 0].numpy()[inside], (other + membrane)[inside], atol=1e-10)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_of_equal_images_a_harmonic_part_is_left(alpha):
    image = sample(1)
    images = image.expand(len(RECTANGLES), -1, -1, -1)
    found = apply_interpolation(images, parameters(alpha)).image
    most = max(alpha, 1 - alpha)
    for i, rectangle in enumerate(RECTANGLES):
        own = image[0, 0].numpy()
        expected = most * own + (1 - most) * solved(own, rectangle, lambda p, q: 0.0)
        np.testing.assert_allclose(found[i, 0].numpy(), expected, atol=1e-10)


def test_a_constant_added_to_the_other_image_changes_nothing():
    images = sample(2)
    images[:, 0, 0, :2] = torch.tensor([-9.0, 9.0])  # the same range with and without
    rectangles = [RECTANGLES[1]] * 2
    brighter = images.clone()
    brighter[1, 0, 1:] += 2
    for blend, differs in (("poisson", False), ("linear", True)):
        first, second = (
            apply_interpolation(x, parameters(0.6, rectangles), blend).image[0] for x in (images, brighter)
        )
        assert torch.allclose(first, second, atol=1e-12) != differs


@pytest.mark.parametrize("blend", ["poisson", "linear"])
def test_what_lies_outside_the_rectangle_is_kept_bit_by_bit(blend):
    images = sample(dtype=torch.float32)
    pasted = apply_interpolation(images, parameters(0.7), blend)
    outside = torch.ones_like(images, dtype=torch.bool)
    for i, (top, left, height, width) in enumerate(RECTANGLES):
        outside[i, 0, top : top + height, left : left + width] = False
    assert torch.equal(pasted.image[outside], images[outside])
    assert not pasted.mask[outside].any()
    assert ((pasted.image != images) & ~outside).flatten(1).any(dim=1).all()
    torch.testing.assert_close(pasted.image, apply_interpolation(images.double(), parameters(0.7), blend).image.float())


def test_linear_interpolation_is_of_intensities():
    images = sample()
    pasted = apply_interpolation(images, parameters(0.3), "linear")
    for i, (top, left, height, width) in enumerate(RECTANGLES):
        expected, inside = images[i, 0].clone(), (slice(top, top + height), slice(left, left + width))
        expected[inside] = 0.7 * images[i, 0][inside] + 0.3 * images[(i + 1) % len(images), 0][inside]
        torch.testing.assert_close(pasted.image[i, 0], expected)


def test_pixels_that_did_not_change_are_not_labelled():
    images = sample(2)
    images[1] = images[0]
    images[1, 0, 7, 9] += 1
    pasted = apply_interpolation(images, parameters(0.4, [RECTANGLES[1]] * 2), "linear")
    assert (pasted.mask > 0).sum() == 2
    assert pasted.mask[0, 0, 7, 9] == pasted.mask[1, 0, 7, 9] == pytest.approx(0.4)


@pytest.mark.parametrize("blend", ["poisson", "linear"])
def test_the_other_image_may_be_moved_before(blend):
    """As if it had been rolled, which the rectangle and the pixels around it do not see the end of."""
    images = sample()
    still = parameters(0.6)
    down = torch.tensor([0, 3, -8, 4, 11, -1, -17])
    right = torch.tensor([0, -7, 10, 3, -10, 1, 15])
    moved = apply_interpolation(images, still._replace(down=down, right=right), blend)
    for i in range(len(RECTANGLES)):
        rolled = images.clone()
        other = (i + 1) % len(images)
        rolled[other] = images[other].roll((-int(down[i]), -int(right[i])), (1, 2))
        expected = apply_interpolation(rolled, still, blend)
        torch.testing.assert_close(moved.image[i], expected.image[i])
        torch.testing.assert_close(moved.mask[i], expected.mask[i])


def test_a_shift_is_uniform_and_keeps_the_square_within_the_image():
    side = 2048
    drawn = PatchInterpolation(patch_share=(0.05, 0.05), shift=0.25).draw(
        torch.zeros(1).expand(4000, 1, side, side), None, seeded()
    )
    for first, count, by in ((drawn.top, drawn.height, drawn.down), (drawn.left, drawn.width, drawn.right)):
        assert torch.equal(by[::2], by[1::2])
        assert (first + by).min() == 1
        assert (first + count + by).max() == side - 1
        middle = first + count // 2
        free = (middle > 0.31 * side) & (middle < 0.69 * side)  # where nothing holds it back
        assert pvalue(by[free][::2] / side, -0.25, 0.25) > UNLIKELY
        assert stats.spearmanr(middle[free][::2], by[free][::2]).pvalue > UNLIKELY
    assert stats.spearmanr(drawn.down[::2], drawn.right[::2]).pvalue > UNLIKELY
    still = PatchInterpolation().draw(torch.zeros(6, 1, 64, 64), None, seeded())
    assert not still.down.any()
    assert not still.right.any()


def pvalue(values: torch.Tensor, low: float, high: float) -> float:
    return stats.kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue


def test_draws_follow_the_paper_and_a_pair_shares_them():
    side = 2048  # so large that whole pixels hardly matter
    drawn = PatchInterpolation().draw(torch.zeros(1).expand(4000, 1, side, side), None, seeded())
    assert drawn.partner.tolist() == [i + 1 if i % 2 == 0 else i - 1 for i in range(4000)]
    for each in drawn[1:]:
        assert torch.equal(each[::2], each[1::2])
    one = BlendParameters(*(each[::2] for each in drawn))
    assert pvalue(one.alpha, 0.05, 0.95) > UNLIKELY
    whole = (one.top > 1) & (one.left > 1) & (one.top + one.height < side - 1) & (one.left + one.width < side - 1)
    assert torch.equal(one.height[whole], one.width[whole])
    # The half side of squares that are cut off nowhere: of those whose centre is far from the border.
    middle_y, middle_x = one.top + one.height // 2, one.left + one.width // 2
    central = whole & ((middle_y / side - 0.5).abs() < 0.29) & ((middle_x / side - 0.5).abs() < 0.29)
    assert pvalue((one.height[central] - 1) / 2 / side, 0.05, 0.2) > UNLIKELY
    small = whole & (one.height < 0.19 * side)  # less than twice the tenth that centres keep from the border
    assert pvalue(middle_y[small] / side, 0.1, 0.9) > UNLIKELY
    assert pvalue(middle_x[small] / side, 0.1, 0.9) > UNLIKELY
    values = [one.alpha[small], one.height[small], middle_y[small], middle_x[small]]
    for i, first in enumerate(values):
        for second in values[:i]:
            assert stats.spearmanr(first, second).pvalue > UNLIKELY


def test_squares_end_a_pixel_before_the_images_border():
    drawn = PatchInterpolation(patch_share=(0.4, 0.5)).draw(torch.zeros(1).expand(200, 1, 40, 56), None, seeded())
    assert drawn.top.min() == drawn.left.min() == 1
    assert (drawn.top + drawn.height).max() == 39
    assert (drawn.left + drawn.width).max() == 55


def test_in_a_region_squares_are_centred_on_pixels_of_their_own_images_mask():
    region = torch.zeros(40, 1, 64, 64, dtype=torch.bool)
    region[::2, :, 20:30, 15:25] = True
    region[1::2, :, 33:45, 40:44] = True
    augmentation = PatchInterpolation(patch_share=(0.1, 0.1), segmentation=True)
    drawn = augmentation.draw(region.float(), region, seeded())
    centre_y, centre_x = drawn.top + drawn.height // 2, drawn.left + drawn.width // 2
    assert region[torch.arange(40), 0, centre_y, centre_x].all()
    assert len(set(centre_y.tolist())) > 10
    assert torch.equal(drawn.alpha[::2], drawn.alpha[1::2])
    with pytest.raises(ValueError, match="region masks are missing"):
        augmentation(torch.rand(2, 1, 64, 64))


def test_the_last_of_an_odd_batch_is_paired_with_the_first():
    images = torch.rand(5, 1, 32, 32, generator=seeded())
    augmentation = PatchInterpolation()
    drawn = augmentation.draw(images, None, seeded(4))
    assert drawn.partner.tolist() == [1, 0, 3, 2, 0]
    (pasted,) = augmentation(images, generator=seeded(4))
    again = apply_interpolation(images, drawn)
    assert torch.equal(pasted.image, again.image)
    assert torch.equal(pasted.mask, again.mask)


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"blend": "alpha"}, (2, 32, 32), "blend must be one of 'poisson', 'linear', not 'alpha'"),
        ({"patch_share": (0.2, 0.1)}, (2, 32, 32), r"patch_share must be \(lowest, highest\), but 0.2 is above 0.1"),
        ({"patch_share": (0.1, 0.6)}, (2, 32, 32), r"patch_share must lie within \(0, 0.5\]"),
        ({"shift": 1.5}, (2, 32, 32), r"shift must lie within \[0, 1\] and be finite, but is 1.5"),
        ({"alpha": (0.0, 0.6)}, (2, 32, 32), r"alpha must lie within \(0, 1\]"),
        ({}, (1, 32, 32), "a single image has no other to be interpolated with: use batches of 2 images or more"),
        (
            {},
            (2, 9, 32),
            "images of 9 x 32 pixels are too small for the smallest square, half of whose side would be 0.45",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        PatchInterpolation(**arguments)(torch.rand(shape[0], 1, *shape[1:]))
