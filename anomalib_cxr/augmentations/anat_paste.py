"""AnatPaste: a patch of the image, blended softly into its lungs, or into any other region."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from anomalib_cxr.augmentations.checks import check_not_empty, check_number, check_range
from anomalib_cxr.augmentations.draws import below, between, uniform_draws
from anomalib_cxr.augmentations.pasting import Pasted, Pasting, Window, blend, map_tensors
from anomalib_cxr.augmentations.patches import PATCH_DRAWS, Patches, PatchReader, draw_sizes, pixel_scale, place_patches
from anomalib_cxr.augmentations.soft_shapes import SoftShapes, blur_reach
from anomalib_cxr.checks import check_choice
from anomalib_cxr.devices import on_device

Surround = Literal["black", "edge"]


class PasteParameters(NamedTuple):
    """Everything random about AnatPaste for a batch. Each field has shape (B,).

    Attributes:
        patches: The patches cut out.
        centre_y: Row on which the patch is centred, int64: row ``patches.height // 2`` of the patch falls there.
        centre_x: Column on which the patch is centred, int64.
        half_height: Rows of the sharp shape above and below its centre, int64.
        half_width: Columns of the sharp shape left and right of its centre, int64.
        ellipse: True for an ellipse, False for a rectangle, bool.
        value: Blending weight inside the shape, before the blur, in [0, 1], float64.
        sigma: Standard deviation of the blur in pixels of these images, float64.
    """

    patches: Patches
    centre_y: Tensor
    centre_x: Tensor
    half_height: Tensor
    half_width: Tensor
    ellipse: Tensor
    value: Tensor
    sigma: Tensor


class AnatPasteAugmentation(Pasting):
    """AnatPaste (Sato et al., iScience 2023, arXiv 2205.04282), made for lungs on radiographs.

    A patch of the image, its colours jittered, is centred on a random pixel of the region (the paper's: the lungs) and
    blended in: ``X * (1 - m) + patch * m``, where m is a blurred ellipse or rectangle times the region. Lengths in
    pixels are meant at 256 x 256 and scale with sqrt(H * W) / 256.

    Where this departs from the published code: the region is given, not segmented anew at every step; mask value and
    blur are continuous, as in the paper (the code draws whole numbers 150, ..., 254 of 255 and 0, ..., 14); pixels are
    not rounded to 8 bit; the shape does not end at the image's edge before it is blurred; a patch no thicker than twice
    the margin leaves a line one pixel thin, so that something is pasted always; without a region there is an error.

    Args:
        area: Lowest and highest share of the image's area that the patch takes (paper: 0.02 to 0.15).
        aspect: Lowest and highest width-to-height ratio of the patch, drawn log-uniformly (paper: 0.3 to 1/0.3).
        jitter: Brightness and contrast factors of the patch are uniform in [1 - jitter, 1 + jitter] (paper: 0.1).
        margin: Pixels by which the shape is smaller than the patch, on each side (published code: 10).
        value: Lowest and highest blending weight of the shape (published code: 150/255 to 1).
        sigma: Lowest and highest standard deviation of the blur in pixels (paper: 0 to 15).
        segmentation: Whether to use the region; ``False``, an ablation of the paper, pastes anywhere.
        blur: Whether to blur the shape; ``False`` is another ablation of the paper.
        surround: What is blended where the blur leaks out of the patch (4 % of all weight on average, at a pixel up to
            a quarter). ``"black"`` is what the published code does, and what its results rest on: the surroundings
            are darkened a little. ``"edge"`` is ours: the patch goes on with its outermost pixels.

    Raises:
        ValueError: If a parameter is out of range or a pair of limits is reversed.

    Examples:
        >>> import torch
        >>> images = torch.rand(4, 1, 64, 64)
        >>> region = torch.zeros(4, 1, 64, 64, dtype=torch.bool)
        >>> region[:, :, 16:48, 10:28] = True
        >>> (pasted,) = AnatPasteAugmentation()(images, region, torch.Generator().manual_seed(0))
        >>> pasted.image.shape, bool((pasted.mask[~region] == 0).all())
        (torch.Size([4, 1, 64, 64]), True)
    """

    def __init__(
        self,
        area: tuple[float, float] = (0.02, 0.15),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        jitter: float = 0.1,
        margin: float = 10.0,
        value: tuple[float, float] = (150 / 255, 1.0),
        sigma: tuple[float, float] = (0.0, 15.0),
        segmentation: bool = True,
        blur: bool = True,
        surround: Surround = "black",
    ) -> None:
        super().__init__()
        self.area = check_range("area", area, 0, 1, open_low=True)
        self.aspect = check_range("aspect", aspect, 0, open_low=True)
        self.jitter = check_number("jitter", jitter, high=1)
        self.margin = check_number("margin", margin)
        self.value = check_range("value", value, 0, 1, open_low=True)
        self.sigma = check_range("sigma", sigma, 0)
        self.segmentation = segmentation
        self.blur = blur
        self.surround = check_choice("surround", surround, Surround)

    def paste(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted]:
        """Paste into each image; the region is unused without segmentation."""
        used = region if self.segmentation else None
        return (apply_anat_paste(images, used, self.draw(images, used, generator), self.surround),)

    def draw(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> PasteParameters:
        """Draw the parameters that :func:`apply_anat_paste` applies.

        Args:
            images: Images to draw for, shape (B, 1, H, W); only their shape matters.
            region: Region masks, bool, shape (B, 1, H, W), or ``None`` for a centre anywhere in the image.
            generator: Source of randomness; ``None`` takes PyTorch's global CPU generator.

        Returns:
            The parameters, on the generator's device; centres in a region on the region's device.

        Raises:
            ValueError: If a region mask on the CPU is empty, or the images are too small for the smallest patch.
        """
        frame = (images.shape[2], images.shape[3])
        scale = pixel_scale(frame)
        uniform = uniform_draws(len(images), PATCH_DRAWS + 6, generator)
        height, width = draw_sizes(uniform[:, :2], self.area, self.aspect, frame)
        centre, ellipse, value, sigma = uniform[:, 2:6].unbind(1)
        if region is None:
            pixel = below(centre, torch.full_like(height, frame[0] * frame[1]))
            centre_y, centre_x = pixel // frame[1], pixel % frame[1]
        else:
            centre_y, centre_x = random_region_pixel(region, centre)
        margin = round(self.margin * scale)
        return PasteParameters(
            patches=place_patches(uniform[:, 6:], height, width, self.jitter, frame),
            centre_y=centre_y,
            centre_x=centre_x,
            half_height=(height // 2 - margin).clamp(min=0),
            half_width=(width // 2 - margin).clamp(min=0),
            ellipse=ellipse < 0.5,
            value=between(value, self.value),
            sigma=between(sigma, self.sigma) * scale if self.blur else torch.zeros_like(sigma),
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        names = ("area", "aspect", "jitter", "margin", "value", "sigma", "segmentation", "blur", "surround")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


@torch.no_grad()
def apply_anat_paste(
    images: Tensor, region: Tensor | None, parameters: PasteParameters, surround: Surround = "black"
) -> Pasted:
    """Apply AnatPaste with given parameters.

    Args:
        images: Grey images in [0, 1], float, shape (B, 1, H, W).
        region: Region masks, bool, shape (B, 1, H, W), or ``None`` for no restriction.
        parameters: What to paste and where, on any device.
        surround: What is blended outside of the patch's box, see :class:`AnatPasteAugmentation`.

    Returns:
        The augmented images and the blending weights, zero outside of the region.
    """
    check_choice("surround", surround, Surround)
    frame = (images.shape[2], images.shape[3])
    device, precise = images.device, torch.promote_types(images.dtype, torch.float32)
    # Read before they are moved, so that no device is waited for.
    extents = parameters.half_height.tolist(), parameters.half_width.tolist()
    patches, centre_y, centre_x, half_height, half_width, ellipse, value, sigma = map_tensors(
        lambda tensor: on_device(tensor, device), parameters
    )
    reach = blur_reach(sigma)
    down, across = half_height + reach, half_width + reach
    bounds = torch.stack([centre_y - down, centre_x - across, centre_y + down, centre_x + across])
    value = value.float()[:, None, None]
    # Rows and columns of the image as rows and columns of the patch; beyond the patch its nearest ones are read.
    top, left, height, width = (field[:, None, None] for field in patches[:4])
    y = torch.arange(frame[0], device=device)[:, None] - centre_y[:, None, None] + height // 2
    x = torch.arange(frame[1], device=device)[None, :] - centre_x[:, None, None] + width // 2
    from_y = top + torch.minimum(y.clamp(min=0), height - 1)
    from_x = left + torch.minimum(x.clamp(min=0), width - 1)
    y_inside = ((y >= 0) & (y < height)).to(precise)
    x_inside = ((x >= 0) & (x < width)).to(precise)

    def render(window: Window) -> tuple[Tensor, Tensor]:
        batch, rows, columns = window
        patch = reader.read(batch, from_y[batch, rows], from_x[batch, :, columns])
        if surround == "black":
            patch = patch.mul_(y_inside[batch, rows]).mul_(x_inside[batch, :, columns])
        weights = shapes.read(window).mul_(value[batch])
        if region is not None:
            weights *= region[batch, 0, rows, columns]
        return patch, weights

    # Mixed precision would take the matrix products, and so the weights, in half precision.
    with torch.autocast(device.type, enabled=False):
        reader = PatchReader(images, patches)
        shapes = SoftShapes(centre_y, centre_x, half_height, half_width, ellipse, sigma, frame, extents)
        return blend(images, bounds, render)


def random_region_pixel(region: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Choose a pixel of each region mask, all with the same probability.

    Args:
        region: Region masks, bool, shape (B, 1, H, W).
        uniform: Uniform draws in [0, 1), shape (B,).

    Returns:
        Row and column of the pixel, int64, shape (B,), on the device of ``region``.

    Raises:
        ValueError: If a mask on the CPU is empty; elsewhere this is not looked at, since the device would be waited for
            (:meth:`Pasting.forward` looks).
    """
    masks = region[:, 0]
    in_row = masks.sum(dim=2, dtype=torch.int32)
    up_to_row = in_row.cumsum(dim=1)
    total = up_to_row[:, -1]
    if total.device.type == "cpu":
        check_not_empty(total)
    # The pixel's rank among those of the region of its image; first its row, then its place in the row.
    rank = below(on_device(uniform, region.device), total)[:, None]
    row = torch.searchsorted(up_to_row, rank, right=True)
    rank = rank - (up_to_row - in_row).gather(1, row)
    chosen = masks[torch.arange(len(masks), device=region.device), row[:, 0]]
    column = torch.searchsorted(chosen.cumsum(dim=1), rank, right=True)
    return row[:, 0], column[:, 0]
