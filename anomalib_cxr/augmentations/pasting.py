"""What all pasting augmentations share: their result, and how windows of a batch are blended."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

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

    Attributes:
        num_classes: Classes of the pretext task: normal images and each kind of pasted images.
    """

    num_classes: int = 2

    def forward(
        self, images: Tensor, lungs: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Pasted, ...]:
        """Paste into each image.

        Args:
            images: Grey images in [0, 1], float, shape (B, 1, H, W).
            lungs: Lung masks, bool, shape (B, 1, H, W).
            generator: Source of randomness, of any device; ``None`` takes PyTorch's global CPU generator.

        Returns:
            One :class:`Pasted` for each pasted class, ``num_classes - 1`` in all.
        """
        raise NotImplementedError


class Window(NamedTuple):
    """Part of a batch that is blended at once: some images, the same rows and columns of each.

    Attributes:
        batch: The images.
        rows: Their rows.
        columns: Their columns.
        sizes: Highest ``sizes`` (see :func:`blend`) of these images.
    """

    batch: slice
    rows: slice
    columns: slice
    sizes: tuple[int, ...]


def blend(
    images: Tensor,
    parameters: Parameters,
    bounds: Tensor,
    sizes: Tensor,
    render: Callable[[Tensor, Window, Parameters], tuple[Tensor, Tensor]],
) -> Pasted:
    """Blend a patch into each image.

    On a CPU time goes with the pixels touched, so each image is blended in its own tight window; elsewhere time goes
    with the number of calls, so the whole batch is blended at once, in one window as large as the images.

    Args:
        images: Grey images in [0, 1], shape (B, 1, H, W).
        parameters: What ``render`` needs to know, a (nested) named tuple of tensors of shape (B,), on any device.
        bounds: First row, first column, last row and last column that may change in each image, int64, shape (4, B).
        sizes: Sizes by which ``render`` lays out its tensors, int64, shape (K, B).
        render: Gives patch and blending weights in a window, each float, shape (n, rows, columns), from the n images
            of the window, shape (n, H, W), the window, and the parameters of these images.

    Returns:
        The images after blending, and the blending weights.
    """
    batch, _, height, width = images.shape
    image, mask = images.clone(memory_format=torch.contiguous_format), torch.zeros_like(images)
    precise = torch.promote_types(images.dtype, torch.float32)
    if images.device.type == "cpu":
        first, last = bounds.clamp(min=0)[:2].T.tolist(), (bounds[2:] + 1).T.tolist()
        windows = [
            Window(slice(i, i + 1), slice(top, min(bottom, height)), slice(left, min(right, width)), tuple(size))
            for i, ((top, left), (bottom, right), size) in enumerate(zip(first, last, sizes.T.tolist(), strict=True))
        ]
    else:
        windows = [Window(slice(0, batch), slice(0, height), slice(0, width), tuple(sizes.amax(dim=1).tolist()))]
    parameters = map_tensors(lambda tensor: tensor.to(images.device), parameters)
    # Mixed precision would compute the weights, and so the images, in half precision.
    with torch.autocast(images.device.type, enabled=False):
        for window in windows:
            pixels = images[window.batch, 0].to(precise)
            patch, weights = render(pixels, window, select(parameters, window.batch))
            here = (slice(None), window.rows, window.columns)
            mask[window.batch, 0][here] = weights.to(mask.dtype)
            image[window.batch, 0][here] = torch.lerp(pixels[here], patch, weights.to(precise)).to(image.dtype)
    return Pasted(image, mask)


def select(parameters: Parameters, batch: slice) -> Parameters:
    """Take the parameters of some images."""
    return map_tensors(lambda tensor: tensor[batch], parameters)


def map_tensors(function: Callable[..., Tensor], *parameters: Parameters) -> Parameters:
    """Apply a function to the tensors of (nested) named tuples of the same type, field by field."""
    return type(parameters[0])(
        *(
            map_tensors(function, *fields) if isinstance(fields[0], tuple) else function(*fields)
            for fields in zip(*parameters, strict=True)
        )
    )


def coordinates(window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column numbers of a window, int64, shapes (1, Y, 1) and (1, 1, X)."""
    rows = torch.arange(window.rows.start, window.rows.stop, device=device)
    columns = torch.arange(window.columns.start, window.columns.stop, device=device)
    return rows[None, :, None], columns[None, None, :]
