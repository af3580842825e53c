"""The two random views of a patch that SimCLR compares.

Kim, Moon and Lee (Sci. Rep. 2023) use "random crop (50 %) and rotation (-5° to +5°)" and say no more; we read the
first as a square crop of half the patch's area, enlarged to the patch's size. Crop and rotation are one warp here
(kornia), so a patch is interpolated once, for the whole batch, on the device.
"""

import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Tensor, nn

from anomalib_cxr.devices import on_device


class SimCLRViews(nn.Module):
    """Random crop and rotation of a batch of patches.

    Randomness comes only from the generator handed to :meth:`forward`, a CPU generator whatever the device of the
    patches: the same seed gives the same crops and angles on every device, and the global random state is neither
    read nor moved. To make a step repeatable, build the generator from the step's index:
    ``torch.Generator().manual_seed(seed + step)``.

    Args:
        crop_area: Smallest and largest area of the crop as a fraction of the patch, each in ``(0, 1]``. One number
            stands for both. Defaults to ``0.5``.
        degrees: Largest rotation in degrees, to either side, drawn uniformly. Defaults to ``5``.

    Raises:
        ValueError: If an area lies outside ``(0, 1]`` or the rotation is negative.

    Examples:
        >>> views = SimCLRViews()
        >>> patches = torch.rand(4, 1, 32, 32)
        >>> first, second = views(patches, torch.Generator().manual_seed(0))
        >>> first.shape
        torch.Size([4, 1, 32, 32])
    """

    def __init__(self, crop_area: float | tuple[float, float] = 0.5, degrees: float = 5.0) -> None:
        super().__init__()
        low, high = (crop_area, crop_area) if isinstance(crop_area, int | float) else crop_area
        if not 0 < low <= high <= 1:
            msg = f"`crop_area` must satisfy 0 < smallest <= largest <= 1, got {crop_area}."
            raise ValueError(msg)
        if degrees < 0:
            msg = f"`degrees` is the largest rotation to either side and must not be negative, got {degrees}."
            raise ValueError(msg)
        self.crop_area = (float(low), float(high))
        self.degrees = float(degrees)

    def forward(self, patches: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw two independent views.

        Args:
            patches: Patches of shape ``(n, C, p, p)``, floating point.
            generator: CPU generator that decides everything.

        Returns:
            Two tensors of the shape of ``patches``.
        """
        return self.view(patches, generator), self.view(patches, generator)

    def view(self, patches: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one view; see :meth:`forward`."""
        n, _, height, width = patches.shape
        area, x, y, turn = torch.rand(4, n, generator=generator)
        low, high = self.crop_area
        side = (low + (high - low) * area).sqrt()
        size = torch.tensor([width, height])
        # Any centre whose crop, before the turn, lies inside the patch.
        room = (1 - side)[:, None] * size
        centre = (torch.stack((x, y), dim=1) - 0.5) * room + (size - 1) / 2
        angle = (2 * turn - 1) * self.degrees
        # Moves the crop's centre to the patch's centre, then enlarges and turns about it.
        matrix = get_affine_matrix2d(
            translations=(size - 1) / 2 - centre,
            center=centre,
            scale=(1 / side)[:, None].expand(-1, 2),
            angle=angle,
        )[:, :2]
        # The corners that a turn brings in from outside are mirrored: black ones would be a mark both views share.
        return warp_affine(
            patches, on_device(matrix, patches.device).to(patches.dtype), (height, width), padding_mode="reflection"
        )
