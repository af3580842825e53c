"""Interpolation of two images inside a rectangle: by gradients (PII), or by intensities (FPI)."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anomalib_cxr.augmentations.anat_paste import random_region_pixel
from anomalib_cxr.augmentations.checks import check_number, check_range
from anomalib_cxr.augmentations.draws import between, uniform_draws
from anomalib_cxr.augmentations.pasting import Pasted, Pasting, map_tensors, windows
from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import on_device

Blend = Literal["poisson", "linear"]

CHANGED = 1e-3
"""Least change of a pixel that counts as one (PII's code)."""
_INNER = (0.1, 0.9)  # part of the image, on each axis, that centres lie in


class BlendParameters(NamedTuple):
    """Everything random about interpolation for a batch. Each field has shape (B,).

    Attributes:
        partner: Place in the batch of the image that is blended in, int64.
        top: First row of the rectangle, int64, at least 1.
        left: First column, int64, at least 1.
        height: Rows, int64, at least 1; a row of the image is left below them.
        width: Columns, int64, at least 1; a column of the image is left beside them.
        alpha: Share of the partner, float64.
        down: Rows that the partner's rectangle lies below this one, int64, so few that it and the pixels around it lie
            within the image.
        right: Columns that it lies to the right.
    """

    partner: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    alpha: Tensor
    down: Tensor
    right: Tensor


class PatchInterpolation(Pasting):
    """Poisson image interpolation (PII; Tan et al., MICCAI 2021, arXiv 2107.02622), or linear (FPI; arXiv 2011.04197).

    Images of a batch are taken in pairs, and inside one square at the same place of both each is interpolated with the
    other, by a share α: by their intensities (FPI), or by their gradients, so that the square has no visible border
    (PII). A network learns to tell α. In an odd batch the last image is interpolated with the first.

    Images may have any range: PII's are standardised. Where this departs from the published code: a square that touches
    the image's border ends a pixel before it, where the code leaves that pixel unlabelled; the Poisson equation is
    solved by sine transforms instead of a sparse solver, with the same result.

    Args:
        blend: ``"poisson"`` or ``"linear"``.
        patch_share: Lowest and highest half side of the square, as a share of the image's side (paper: 0.05 to 0.2).
        alpha: Lowest and highest share of the other image (paper: 0.05 to 0.95).
        shift: How far from the square's own place, along each axis and as a share of the image's side, the other
            image's square may lie at most (paper: 0, the same place). As in the natural synthetic anomalies that came
            after (Schlüter et al., ECCV 2022), what is blended in is then brighter or darker than what was there.
        segmentation: Centre the squares on a random pixel of the region, each image in its own (ours); otherwise they
            are centred in the inner 80 % of both sides, at the same place of both images.

    Raises:
        ValueError: If a parameter is out of range or a pair of limits is reversed.

    Examples:
        >>> import torch
        >>> images = torch.rand(4, 1, 64, 64)
        >>> (pasted,) = PatchInterpolation()(images, generator=torch.Generator().manual_seed(0))
        >>> pasted.image.shape, bool((pasted.image == images)[pasted.mask == 0].float().mean() > 0.99)
        (torch.Size([4, 1, 64, 64]), True)
    """

    def __init__(
        self,
        blend: Blend = "poisson",
        patch_share: tuple[float, float] = (0.05, 0.2),
        alpha: tuple[float, float] = (0.05, 0.95),
        shift: float = 0.0,
        segmentation: bool = False,
    ) -> None:
        super().__init__()
        self.blend = check_choice("blend", blend, Blend)
        self.patch_share = check_range("patch_share", patch_share, 0, 0.5, open_low=True)
        self.alpha = check_range("alpha", alpha, 0, 1, open_low=True)
        check_number("shift", shift, high=1.0)
        self.shift = float(shift)
        self.segmentation = segmentation

    def paste(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted]:
        """Interpolate each image with its partner; the mask is α where a pixel has changed."""
        used = region if self.segmentation else None
        return (apply_interpolation(images, self.draw(images, used, generator), self.blend),)

    def draw(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> BlendParameters:
        """Draw the parameters that :func:`apply_interpolation` applies; a pair shares its numbers.

        Args:
            images: Images to draw for, shape (B, 1, H, W); only their shape matters.
            region: Region masks, bool, shape (B, 1, H, W), or ``None`` for anywhere.
            generator: Source of randomness; ``None`` takes PyTorch's global CPU generator.

        Returns:
            The parameters, on the generator's device; rectangles in a region on the region's device.

        Raises:
            ValueError: If there is a single image, the images are too small for the smallest square, or a region mask
                on the CPU is empty.
        """
        batch, frame = len(images), (images.shape[2], images.shape[3])
        if batch < 2:
            msg = "a single image has no other to be interpolated with: use batches of 2 images or more."
            raise ValueError(msg)
        if round(self.patch_share[0] * min(frame)) < 1:
            msg = (
                f"images of {frame[0]} x {frame[1]} pixels are too small for the smallest square, half of whose side "
                f"would be {self.patch_share[0] * min(frame):.2f} pixels: use larger images or a larger `patch_share`."
            )
            raise ValueError(msg)
        # Without a shift four numbers are drawn, whatever a shift would take.
        count = 6 if self.shift else 4
        uniform = uniform_draws((batch + 1) // 2, count, generator).repeat_interleave(2, dim=0)[:batch]
        share, alpha = between(uniform[:, 0], self.patch_share), between(uniform[:, 1], self.alpha)
        halves = tuple((share * side).round().long() for side in frame)
        if region is None:
            places = (between(u, _INNER) * side for u, side in zip(uniform[:, 2:4].unbind(1), frame, strict=True))
            centres = tuple(place.floor().long() for place in places)
        else:
            centres = random_region_pixel(region, uniform[:, 2])
            halves = tuple(on_device(half, region.device) for half in halves)
        boxes = [_inside(*each) for each in zip(centres, halves, frame, strict=True)]
        (top, height), (left, width) = boxes
        partner = (torch.arange(batch, device=uniform.device) ^ 1) % batch
        far = uniform[:, 4:] if self.shift else uniform.new_full((batch, 2), 0.5)
        moves = between(on_device(far, top.device), (-self.shift, self.shift)).unbind(1)
        down, right = (_with_room(by * side, *box, side) for by, box, side in zip(moves, boxes, frame, strict=True))
        return BlendParameters(partner, top, left, height, width, alpha, down, right)

    def extra_repr(self) -> str:
        """Show the settings."""
        return ", ".join(
            f"{name}={getattr(self, name)!r}" for name in ("blend", "patch_share", "alpha", "shift", "segmentation")
        )


@torch.no_grad()
def apply_interpolation(images: Tensor, parameters: BlendParameters, blend: Blend = "poisson") -> Pasted:
    """Interpolate images with given parameters.

    Poisson: inside the rectangle the result is the image u that has the own image's values around it and, in least
    squares, the differences of neighbours that are wanted: α times the other image's, or 1 − α times the own image's
    where that is larger (mixed gradients). With both images equal the result is not the image: with m = max(α, 1 − α)
    it is m times the image and 1 − m times the harmonic extension of its border.

    A rectangle's Poisson equation is diagonal after a sine transform of rows and columns, so it is solved exactly by
    four matrix products; for the change u − image, which is 0 at the border.

    Args:
        images: Grey images, float, shape (B, 1, H, W).
        parameters: Where, with whom and how much, on any device.
        blend: ``"poisson"`` or ``"linear"``.

    Returns:
        The interpolated images, kept within the batch's range, and α where a pixel changed by more than
        :data:`CHANGED`.
    """
    check_choice("blend", blend, Blend)
    device, precise = images.device, torch.promote_types(images.dtype, torch.float32)
    given = map_tensors(lambda each: on_device(each, device), parameters)
    partner, top, left, height, width, alpha, down, right = given
    others, (lowest, highest) = _moved(images.index_select(0, partner), down, right), images.aminmax()
    row = torch.arange(images.shape[2], device=device) - top[:, None] + 1  # from 1 to height inside
    column = torch.arange(images.shape[3], device=device) - left[:, None] + 1
    shares = alpha.to(precise)[:, None, None]
    image, mask = images.clone(memory_format=torch.contiguous_format), torch.zeros_like(images)
    bounds = torch.stack([top - 1, left - 1, top + height, left + width])
    # Mixed precision would take the matrix products in half precision.
    with torch.autocast(device.type, enabled=False):
        for batch, rows, columns in windows(images, bounds):
            here = (batch, 0, rows, columns)
            own, other, share = images[here].to(precise), others[here].to(precise), shares[batch]
            along, across = row[batch, rows], column[batch, columns]
            if blend == "poisson":
                along_waves = SineTransform(along, height[batch], precise)
                across_waves = SineTransform(across, width[batch], precise)
                change = _solve(_outflow(own, other, share), along_waves, across_waves)
            else:
                inside = _within(along, height[batch])[:, :, None] & _within(across, width[batch])[:, None, :]
                change = share * (other - own) * inside
            result = (own + change).clamp(lowest.to(precise), highest.to(precise)).to(images.dtype)
            mask[here] = (share * ((result - images[here]).abs() > CHANGED)).to(images.dtype)
            image[here] = result
    return Pasted(image, mask)


class SineTransform:
    """Sine transform of a stretch of rows (or columns), one an image, as symmetric orthonormal matrices.

    Args:
        place: Number of each row in its stretch, int64, shape (n, L); from 1 to ``count`` inside of it.
        count: Rows of the stretch, int64, shape (n,).
        dtype: Of the matrices.

    Attributes:
        waves: The matrices, shape (n, L, L); zero outside of the stretch.
        eigenvalues: Of the negative second difference with zeros around the stretch, shape (n, L); 1 outside.
    """

    def __init__(self, place: Tensor, count: Tensor, dtype: torch.dtype) -> None:
        inside = _within(place, count)
        period = count[:, None, None] + 1
        # Whole waves are taken off before the sine, which would lose digits of large angles.
        products = (place[:, :, None] * place[:, None, :]) % (2 * period)
        waves = torch.sin(math.pi / period.to(dtype) * products) * (2 / period.to(dtype)).sqrt()
        self.waves = waves * (inside[:, :, None] & inside[:, None, :])
        step = math.pi / period[:, 0].to(dtype)
        self.eigenvalues = torch.where(inside, 2 - 2 * torch.cos(place * step), 1.0)


def _solve(outflow: Tensor, rows: SineTransform, columns: SineTransform) -> Tensor:
    """Solve 4 w − (w of the four neighbours) = outflow, with w = 0 outside of the rectangle; shapes (n, Y, X)."""
    spectrum = rows.waves @ outflow @ columns.waves
    spectrum = spectrum / (rows.eigenvalues[:, :, None] + columns.eigenvalues[:, None, :])
    return rows.waves @ spectrum @ columns.waves


def _outflow(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """What the wanted differences to the four neighbours have more than the own image's, in sum.

    Args:
        own: (n, Y, X).
        other: (n, Y, X).
        share: α, (n, 1, 1).

    Returns:
        (n, Y, X); at the window's outermost pixels some neighbours are missing.
    """
    total = torch.zeros_like(own)
    for dim, padding in ((1, (0, 0, 1, 1)), (2, (1, 1))):
        mine, theirs = (1 - share) * own.diff(dim=dim), share * other.diff(dim=dim)
        wanted = torch.where(mine.abs() > theirs.abs(), mine, theirs)
        total -= F.pad(wanted - own.diff(dim=dim), padding).diff(dim=dim)
    return total


def _moved(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images (B, 1, H, W) whose pixels are those so many rows below and columns to the right, around the border."""
    height, width = images.shape[2:]
    rows = (torch.arange(height, device=images.device) + down[:, None]) % height
    columns = (torch.arange(width, device=images.device) + right[:, None]) % width
    images = images.gather(2, rows[:, None, :, None].expand(-1, 1, -1, width))
    return images.gather(3, columns[:, None, None, :].expand(-1, 1, height, -1))


def _within(place: Tensor, count: Tensor) -> Tensor:
    return (place >= 1) & (place <= count[:, None])


def _inside(centre: Tensor, half: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """First row (or column) and number of rows of squares, a row of the image left free on each side."""
    first, last = (centre - half).clamp(min=1), (centre + half).clamp(max=side - 2)
    return first, last - first + 1


def _with_room(by: Tensor, first: Tensor, count: Tensor, side: int) -> Tensor:
    """Whole rows (or columns) that squares may be moved by, with a row of the image left on each side."""
    return torch.minimum(torch.maximum(by.round().long(), 1 - first), side - 1 - first - count)
