"""What all pasting augmentations share: their result, and how windows of a batch are blended."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from anomalib_cxr.augmentations.checks import check_images, check_region

Parameters = TypeVar("Parameters", bound=tuple)


class Pasted(NamedTuple):
    """Images with something pasted in.

    Attributes:
        image: The augmented images in [0, 1], shape (B, 1, H, W), of the type of the input.
        mask: Blending weights m in [0, 1] of ``image = X * (1 - m) + patch * m``, shape and type as ``image``.
    """

    image: Tensor
    mask: Tensor


class Pasting(nn.Module):
    """Base of the pasting augmentations: a module without parameters or buffers.

    A subclass implements :meth:`paste`.

    Attributes:
        num_classes: Classes of the pretext task: normal images and each kind of pasted images.
        segmentation: Whether the region is used.
    """

    num_classes: int = 2
    segmentation: bool = False

    @torch.no_grad()
    def forward(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted, ...]:
        """Check images and region, and paste into each image.

        Args:
            images: Grey images in [0, 1], float, shape (B, 1, H, W).
            region: Region masks, bool, shape (B, 1, H, W), none of them empty; unused without ``segmentation``.
            generator: Source of randomness, of any device; ``None`` takes PyTorch's global CPU generator.

        Returns:
            One :class:`Pasted` for each pasted class, ``num_classes - 1`` in all.

        Raises:
            ValueError: If images or region are not as described, or the images are too small for what is pasted.
        """
        check_images(images)
        return self.paste(images, check_region(region, images) if self.segmentation else None, generator)

    def paste(
        self, images: Tensor, region: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted, ...]:
        """Paste into images that were checked: as :meth:`forward`, without making a device wait for a look at them."""
        raise NotImplementedError


class Window(NamedTuple):
    """Part of a batch that is blended at once: some images, the same rows and columns of each."""

    batch: slice
    rows: slice
    columns: slice


def blend(images: Tensor, bounds: Tensor, render: Callable[[Window], tuple[Tensor, Tensor]]) -> Pasted:
    """Blend a patch into each image.

    On a CPU time goes with the pixels touched, so each image is blended in its own tight window; elsewhere time goes
    with the number of calls, so the whole batch is blended at once, in one window as large as the images.

    Args:
        images: Grey images in [0, 1], shape (B, 1, H, W).
        bounds: First row, first column, last row and last column that may change in each image, int64, shape (4, B).
        render: Gives patch and blending weights in a window, each float, shape (n, rows, columns) for n images.

    Returns:
        The images after blending, and the blending weights.
    """
    image, mask = images.clone(memory_format=torch.contiguous_format), torch.zeros_like(images)
    precise = torch.promote_types(images.dtype, torch.float32)
    for window in windows(images, bounds):
        patch, weights = render(window)
        here = (window.batch, 0, window.rows, window.columns)
        mask[here] = weights
        image[here] = torch.lerp(images[here].to(precise), patch, weights.to(precise))
    return Pasted(image, mask)


def windows(images: Tensor, bounds: Tensor) -> list[Window]:
    """List the windows to blend: on a CPU one an image, elsewhere one for the whole batch.

    Args:
        images: Images, shape (B, 1, H, W).
        bounds: See :func:`blend`.
    """
    batch, _, height, width = images.shape
    if images.device.type != "cpu":
        return [Window(slice(0, batch), slice(0, height), slice(0, width))]
    return [
        Window(slice(i, i + 1), slice(max(top, 0), bottom + 1), slice(max(left, 0), right + 1))
        for i, (top, left, bottom, right) in enumerate(bounds.T.tolist())
    ]


def map_tensors(function: Callable[..., Tensor], *parameters: Parameters) -> Parameters:
    """Apply a function to the tensors of (nested) named tuples of the same type, field by field."""
    return type(parameters[0])(
        *(
            map_tensors(function, *fields) if isinstance(fields[0], tuple) else function(*fields)
            for fields in zip(*parameters, strict=True)
        )
    )
