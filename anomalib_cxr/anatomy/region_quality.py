"""What the mask of a region looks like."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalib_cxr.anatomy.lung_outline import FloatArray
from anomalib_cxr.checks import check_choice

Fallback = Literal["shape", "prior"]


@dataclass(frozen=True)
class RegionQuality:
    """What the mask of a region looks like, to find the ones that went wrong.

    Attributes:
        area_fraction: Share of the image inside the mask, above 0 and at most 1.
        components: Number of 8-connected components; 2 is what is expected of lungs.
        symmetry: Area of the second largest component over the largest, in [0, 1]; 0 with one component.
        border_contact: Whether the mask touches the image's border.
        contrast: Mean brightness around the mask minus inside it, in the image's units. Below zero for an image whose
            lungs are not dark (an inverted one, say).
        fallback_used: None where the asked method gave the mask; ``"shape"`` where Otsu's method found nothing;
            ``"prior"`` where no lungs were found and the average outline stands in the middle of the image.
        placement_score: Score of the placed outline, see :func:`~anomalib_cxr.anatomy.lung_outline.place_outline`;
            below :data:`~anomalib_cxr.anatomy.lung_segmentation.MIN_PLACEMENT_SCORE` the prior is used. None where no
            outline was placed.
    """

    area_fraction: float
    components: int
    symmetry: float
    border_contact: bool
    contrast: float
    fallback_used: Fallback | None
    placement_score: float | None


def describe_mask(
    image: FloatArray, mask: NDArray[np.bool_], fallback: Fallback | None, placement_score: float | None
) -> RegionQuality:
    """Measure the mask of a region.

    Args:
        image: Radiograph of shape (H, W).
        mask: Boolean mask of shape (H, W), not empty.
        fallback: What gave the mask where the asked method did not.
        placement_score: Score of the placed outline, if there was one.

    Returns:
        The mask's quality.

    Raises:
        ValueError: If ``fallback`` is unknown.
    """
    check_choice("fallback", fallback, Fallback | None)
    *_, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = np.sort(found[1:, cv2.CC_STAT_AREA])[::-1]
    width = max(3, round(min(mask.shape) * 0.05)) | 1
    around = cv2.dilate(mask.astype(np.uint8), np.ones((width, width), np.uint8)).astype(bool) & ~mask
    return RegionQuality(
        area_fraction=float(mask.mean()),
        components=len(areas),
        symmetry=float(areas[1] / areas[0]) if len(areas) > 1 else 0.0,
        border_contact=bool(mask[[0, -1]].any() or mask[:, [0, -1]].any()),
        contrast=float(image[around].mean() - image[mask].mean()) if around.any() else 0.0,
        fallback_used=fallback,
        placement_score=placement_score,
    )
