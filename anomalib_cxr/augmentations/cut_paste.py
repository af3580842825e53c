"""CutPaste and its variants: a sharp patch pasted anywhere in the image."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_cxr.augmentations.checks import check_number, check_range
from anomalib_cxr.augmentations.draws import below, between, uniform_draws
from anomalib_cxr.augmentations.pasting import Pasted, Pasting, Window, blend, map_tensors
from anomalib_cxr.augmentations.patches import PATCH_DRAWS, Patches, PatchReader, draw_sizes, pixel_scale, place_patches
from anomalib_cxr.devices import on_device


class CutParameters(NamedTuple):
    """Everything random about CutPaste for a batch. Each field has shape (B,).

    Attributes:
        patches: The patches cut out.
        angle: Rotation of the patch in degrees, counter-clockwise, float64.
        top: First row of the rotated patch's bounding box in the image, int64.
        left: First column of that box, int64.
    """

    patches: Patches
    angle: Tensor
    top: Tensor
    left: Tensor


class CutPasteNormal(Pasting):
    """CutPaste (Li et al., CVPR 2021, arXiv 2104.04015): a rectangular patch pasted elsewhere in the image.

    Args:
        area: Lowest and highest share of the image's area that the patch takes (paper: 0.02 to 0.15).
        aspect: Lowest and highest width-to-height ratio, drawn log-uniformly (paper: 0.3 to 1 and 1 to 3.3).
        jitter: Brightness and contrast factors of the patch are uniform in [1 - jitter, 1 + jitter] (paper: 0.1).

    Raises:
        ValueError: If a parameter is out of range or a pair of limits is reversed.
    """

    def __init__(
        self,
        area: tuple[float, float] = (0.02, 0.15),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        jitter: float = 0.1,
    ) -> None:
        super().__init__()
        self.area = check_range("area", area, 0, 1, open_low=True)
        self.aspect = check_range("aspect", aspect, 0, open_low=True)
        self.jitter = check_number("jitter", jitter, high=1)

    def paste(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted]:
        """Paste into each image; the region is not used."""
        del region
        return (apply_cut_paste(images, self.draw(images, generator)),)

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> CutParameters:
        """Draw the parameters that :func:`apply_cut_paste` applies, on the generator's device.

        Raises:
            ValueError: If the images are too small for the smallest patch.
        """
        frame = (images.shape[2], images.shape[3])
        uniform = uniform_draws(len(images), PATCH_DRAWS + 4, generator)
        height, width = draw_sizes(uniform[:, :2], self.area, self.aspect, frame)
        patches = place_patches(uniform[:, 4:], height, width, self.jitter, frame)
        return _place(patches, torch.zeros_like(uniform[:, 0]), uniform[:, 2:4], frame)


class CutPasteScar(Pasting):
    """CutPaste (scar): a thin rotated rectangle pasted elsewhere in the image.

    Args:
        width: Lowest and highest width in pixels at 256 x 256, scaled with sqrt(H * W) / 256 (paper: 2 to 16).
        height: Lowest and highest height, likewise (paper: 10 to 25).
        rotation: Lowest and highest rotation in degrees, counter-clockwise (paper: -45 to 45).
        jitter: Brightness and contrast factors of the patch are uniform in [1 - jitter, 1 + jitter] (paper: 0.1).

    Raises:
        ValueError: If a parameter is out of range or a pair of limits is reversed.
    """

    def __init__(
        self,
        width: tuple[float, float] = (2.0, 16.0),
        height: tuple[float, float] = (10.0, 25.0),
        rotation: tuple[float, float] = (-45.0, 45.0),
        jitter: float = 0.1,
    ) -> None:
        super().__init__()
        self.width = check_range("width", width, 0, open_low=True)
        self.height = check_range("height", height, 0, open_low=True)
        self.rotation = check_range("rotation", rotation, -180, 180)
        self.jitter = check_number("jitter", jitter, high=1)

    def paste(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted]:
        """Paste into each image; the region is not used."""
        del region
        return (apply_cut_paste(images, self.draw(images, generator)),)

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> CutParameters:
        """Draw the parameters that :func:`apply_cut_paste` applies, on the generator's device.

        Raises:
            ValueError: If the images are too small to hold every scar.
        """
        frame = (images.shape[2], images.shape[3])
        scale = pixel_scale(frame)
        longest = math.hypot(self.height[1] * scale, self.width[1] * scale)
        if min(frame) < longest + 1 or self.width[1] * scale < 1 or self.height[1] * scale < 1:
            msg = (
                f"images of {frame[0]} x {frame[1]} pixels are too small for scars of up to "
                f"{self.height[1] * scale:.1f} x {self.width[1] * scale:.1f} pixels: use larger images."
            )
            raise ValueError(msg)
        uniform = uniform_draws(len(images), PATCH_DRAWS + 5, generator)
        height = (between(uniform[:, 0], self.height) * scale).round().long().clamp(min=1)
        width = (between(uniform[:, 1], self.width) * scale).round().long().clamp(min=1)
        patches = place_patches(uniform[:, 5:], height, width, self.jitter, frame)
        return _place(patches, between(uniform[:, 2], self.rotation), uniform[:, 3:5], frame)


class CutPaste3Way(Pasting):
    """CutPaste (3-way): each image pasted twice, with a rectangle and with a scar, as two classes.

    Args:
        area: See :class:`CutPasteNormal`.
        aspect: See :class:`CutPasteNormal`.
        width: See :class:`CutPasteScar`.
        height: See :class:`CutPasteScar`.
        rotation: See :class:`CutPasteScar`.
        jitter: See :class:`CutPasteNormal`.

    Raises:
        ValueError: If a parameter is out of range or a pair of limits is reversed.
    """

    num_classes = 3

    def __init__(
        self,
        area: tuple[float, float] = (0.02, 0.15),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        width: tuple[float, float] = (2.0, 16.0),
        height: tuple[float, float] = (10.0, 25.0),
        rotation: tuple[float, float] = (-45.0, 45.0),
        jitter: float = 0.1,
    ) -> None:
        super().__init__()
        self.normal = CutPasteNormal(area, aspect, jitter)
        self.scar = CutPasteScar(width, height, rotation, jitter)

    def paste(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted, ...]:
        """Paste into each image, first rectangles, then scars; the region is not used."""
        return (*self.normal.paste(images, region, generator), *self.scar.paste(images, region, generator))


class CutPasteUnion(Pasting):
    """CutPaste (union): each image pasted once, with a rectangle or a scar with probability 1/2 each, as one class.

    Args:
        area: See :class:`CutPasteNormal`.
        aspect: See :class:`CutPasteNormal`.
        width: See :class:`CutPasteScar`.
        height: See :class:`CutPasteScar`.
        rotation: See :class:`CutPasteScar`.
        jitter: See :class:`CutPasteNormal`.

    Raises:
        ValueError: If a parameter is out of range or a pair of limits is reversed.
    """

    def __init__(
        self,
        area: tuple[float, float] = (0.02, 0.15),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        width: tuple[float, float] = (2.0, 16.0),
        height: tuple[float, float] = (10.0, 25.0),
        rotation: tuple[float, float] = (-45.0, 45.0),
        jitter: float = 0.1,
    ) -> None:
        super().__init__()
        self.normal = CutPasteNormal(area, aspect, jitter)
        self.scar = CutPasteScar(width, height, rotation, jitter)

    def paste(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted]:
        """Paste into each image; the region is not used."""
        del region
        return (apply_cut_paste(images, self.draw(images, generator)),)

    def draw(self, images: Tensor, generator: torch.Generator | None = None) -> CutParameters:
        """Draw the parameters that :func:`apply_cut_paste` applies, on the generator's device."""
        scarred = uniform_draws(len(images), 1, generator)[:, 0] < 0.5
        normal, scar = self.normal.draw(images, generator), self.scar.draw(images, generator)
        return map_tensors(lambda of_normal, of_scar: torch.where(scarred, of_scar, of_normal), normal, scar)


@torch.no_grad()
def apply_cut_paste(images: Tensor, parameters: CutParameters) -> Pasted:
    """Apply CutPaste with given parameters.

    A pixel belongs to the rotated patch if its centre does, and takes the value of the patch's nearest pixel.

    Args:
        images: Grey images in [0, 1], float, shape (B, 1, H, W).
        parameters: What to paste and where, on any device.

    Returns:
        The augmented images, and masks that are 1 on the patch and 0 elsewhere.
    """
    device, precise = images.device, torch.promote_types(images.dtype, torch.float32)
    height, width = images.shape[2:]
    rows, columns = _bounding_box(parameters.patches.height, parameters.patches.width, parameters.angle)
    bottom, right = parameters.top + rows - 1, parameters.left + columns - 1
    bounds = torch.stack([parameters.top, parameters.left, bottom, right])

    centre_y, centre_x = (on_device(twice, device) / 2 for twice in (parameters.top + bottom, parameters.left + right))
    patches, angle, _, _ = map_tensors(lambda tensor: on_device(tensor, device), parameters)
    top, left, patch_height, patch_width = (field[:, None, None] for field in patches[:4])
    # Pixels as seen from the patch's centre, turned back by the angle.
    down = torch.arange(height, device=device)[:, None] - centre_y[:, None, None]
    across = torch.arange(width, device=device)[None, :] - centre_x[:, None, None]
    cos, sin = angle.deg2rad().cos()[:, None, None], angle.deg2rad().sin()[:, None, None]
    y_of_row, y_of_column = cos * down + patch_height / 2, sin * across
    x_of_row, x_of_column = -sin * down + patch_width / 2, cos * across

    def render(window: Window) -> tuple[Tensor, Tensor]:
        batch, rows, columns = window
        y = (y_of_row[batch, rows] + y_of_column[batch, :, columns]).floor_().long()
        x = (x_of_row[batch, rows] + x_of_column[batch, :, columns]).floor_().long()
        inside = (y >= 0) & (y < patch_height[batch]) & (x >= 0) & (x < patch_width[batch])
        # What lies outside the patch is read from anywhere in the image, and has no weight.
        from_y, from_x = (y + top[batch]).clamp(0, height - 1), (x + left[batch]).clamp(0, width - 1)
        return reader.read(batch, from_y, from_x), inside.to(precise)

    with torch.autocast(device.type, enabled=False):
        reader = PatchReader(images, patches)
        return blend(images, bounds, render)


def _bounding_box(height: Tensor, width: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns, int64, that hold patches turned by an angle in degrees."""
    cos, sin = angle.deg2rad().cos().abs(), angle.deg2rad().sin().abs()
    # A hair less than the exact size, lest rounding add a row.
    return (height * cos + width * sin - 1e-6).ceil().long(), (width * cos + height * sin - 1e-6).ceil().long()


def _place(patches: Patches, angle: Tensor, uniform: Tensor, frame: tuple[int, int]) -> CutParameters:
    """Place turned patches uniformly where their bounding boxes lie inside the image."""
    rows, columns = _bounding_box(patches.height, patches.width, angle)
    return CutParameters(
        patches=patches,
        angle=angle,
        top=below(uniform[:, 0], frame[0] + 1 - rows),
        left=below(uniform[:, 1], frame[1] + 1 - columns),
    )
