"""What the heat map of a normal image looks like, cell by cell."""

from typing import Literal

import torch
from anomalib.models.components.base import DynamicBufferMixin
from torch import nn
from torch.nn import functional as F

from anomalib_cxr.checks import check_choice

Divisor = Literal["deviation", "mean"]


class NormalMap(DynamicBufferMixin, nn.Module):
    """Subtracts the mean heat map of normal training images, and divides by their deviation or mean if wanted.

    A classifier of whole images answers to some regions in every radiograph (edges of the heart, the diaphragm), and
    the brightest place of a raw Grad-CAM is often one of them. What counts is where a map differs from that of normal
    images. (Ours; chosen on PhantomCXR's validation films, where the brightest 5 % met 76 % of the lesions instead of
    69 %.) Errors of a reconstruction are large at edges and vary there, hence the division.

    Args:
        divide_by: ``"deviation"`` or ``"mean"`` of normal maps, place by place, to which a tenth of its mean over the
            map is added: a rim that is black on all images has none. None divides by nothing.

    Raises:
        ValueError: If ``divide_by`` is none of these.
    """

    def __init__(self, divide_by: Divisor | None = None) -> None:
        super().__init__()
        if divide_by is not None:
            check_choice("divide_by", divide_by, Divisor)
        self.divide_by = divide_by
        self.register_buffer("mean", torch.empty(0, 0, 0))
        self.mean: torch.Tensor
        if divide_by:
            self.register_buffer("scale", torch.empty(0, 0, 0))
            self.scale: torch.Tensor

    def fit(self, cams: torch.Tensor) -> None:
        """Take the mean.

        Args:
            cams: (n, S, h, w) heat maps of un-augmented normal training images; two or more for a deviation.

        Raises:
            ValueError: If there is one alone, which has no deviation.
        """
        self.mean = cams.mean(dim=0)
        if self.divide_by == "deviation" and len(cams) < 2:
            msg = f"A standardised map needs two normal training images or more, got {len(cams)}."
            raise ValueError(msg)
        if self.divide_by:
            size = cams.std(dim=0) if self.divide_by == "deviation" else self.mean
            self.scale = size + 0.1 * size.mean() + torch.finfo(cams.dtype).tiny

    def forward(self, cams: torch.Tensor) -> torch.Tensor:
        """Subtract the mean; unchanged before :meth:`fit`.

        Args:
            cams: (B, S, h, w); of another grid than the training images', the statistics are interpolated.

        Returns:
            (B, S, h, w).
        """
        if self.mean.numel() == 0:
            return cams
        relative = cams - _on_grid(self.mean, cams)
        return relative / _on_grid(self.scale, cams) if self.divide_by else relative


def _on_grid(statistic: torch.Tensor, cams: torch.Tensor) -> torch.Tensor:
    statistic = statistic[None]
    if statistic.shape[-2:] == cams.shape[-2:]:
        return statistic
    return F.interpolate(statistic, size=cams.shape[-2:], mode="bilinear", align_corners=False)
