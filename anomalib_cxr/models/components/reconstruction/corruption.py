"""What is done to a normal image that a network has to undo."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomalib_cxr.devices import on_device


class NoCorruption(nn.Module):
    """Leaves images as they are."""

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) as it is."""
        del generator
        return images


class CoarseNoise(nn.Module):
    """Adds smooth noise (Kascenas et al., MIDL 2022, "Denoising autoencoders … in brain MRI").

    Gaussian numbers on a coarse grid, enlarged bilinearly with aligned corners, and rolled by whole pixels around the
    edges, so that the grid leaves no trace. Enlarging leaves 0.448 of the variance where 16 cells become 128. Its mean
    is 0: noise on a scale of [−1, 1] is twice that on [0, 1], with nothing taken away.

    Args:
        std: Standard deviation of the coarse numbers, for images in [0, 1].
        cells: Side of the coarse grid.
        scale: Range of the images' grey values over that of [0, 1]: 2 for [−1, 1].
    """

    def __init__(self, std: float = 0.2, cells: int = 16, scale: float = 2.0) -> None:
        super().__init__()
        if not std > 0:
            msg = f"noise must be positive, not {std}."
            raise ValueError(msg)
        self.std = std
        self.cells = cells
        self.scale = scale

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, C, H, W) with a noise field added for each channel."""
        batch, channels, height, width = images.shape
        coarse = torch.randn(batch, channels, self.cells, self.cells, generator=generator)
        fields = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        down, right = (torch.randint(side, (batch,), generator=generator).tolist() for side in (height, width))
        rolled = [field.roll(shift, (1, 2)) for field, *shift in zip(fields, down, right, strict=True)]
        return images + self.scale * self.std * on_device(torch.stack(rolled), images.device)


class ErasedSquare(nn.Module):
    """Blackens one square of each image, at a random place (context autoencoder; MedIAnomaly's size).

    Args:
        area: Area of the square over that of the image, in (0, 1); 2.4 % are 10 × 10 pixels of 64 × 64.
        value: Grey value inside.
    """

    def __init__(self, area: float = 0.024, value: float = -1.0) -> None:
        super().__init__()
        self.area = area
        self.value = value

    def forward(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (B, C, H, W), each with a square erased."""
        batch, _, height, width = images.shape
        side = max(1, round((self.area * height * width) ** 0.5))
        tops, lefts = (torch.randint(length - side + 1, (batch, 1), generator=generator) for length in (height, width))
        rows, columns = torch.arange(height), torch.arange(width)
        in_rows, in_columns = (rows >= tops) & (rows < tops + side), (columns >= lefts) & (columns < lefts + side)
        inside = on_device(in_rows[:, None, :, None] & in_columns[:, None, None, :], images.device)
        return images.masked_fill(inside, self.value)
