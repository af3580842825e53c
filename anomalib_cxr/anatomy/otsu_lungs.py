"""Lungs by Otsu's threshold: Algorithm 1 of AnatPaste (Sato et al. 2023, arXiv 2205.04282)."""

import numpy as np
from numpy.typing import NDArray
from skimage.exposure import equalize_adapthist
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.morphology import dilation, opening
from skimage.segmentation import clear_border

CLIP_LIMIT = 0.01
"""Clip limit of the contrast-limited adaptive histogram equalisation (the published code's)."""

MIN_AREA_FRACTION = 400 / 256**2
"""Smallest component kept, as a fraction of the image (the published code's 400 px at 256×256)."""


def otsu_lungs(image: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Segment dark regions that do not touch the border (AnatPaste, Algorithm 1).

    CLAHE, Otsu's threshold (lungs are the dark side), opening 3×3, removal of what touches the border,
    dilation 3×3, removal of small components. The published code removes a small component by zeroing its whole
    bounding box, neighbours included; here only the component goes (ours).

    Args:
        image: Radiograph of shape (H, W) in [0, 1], air dark.

    Returns:
        Boolean mask of shape (H, W); empty where nothing passes the filters.
    """
    if np.ptp(image) == 0:
        return np.zeros(image.shape, dtype=bool)
    equalised = equalize_adapthist(image, clip_limit=CLIP_LIMIT)
    square = np.ones((3, 3), dtype=bool)
    dark = opening(equalised <= threshold_otsu(equalised), square)
    return drop_small(dilation(clear_border(dark), square), MIN_AREA_FRACTION * image.size)


def drop_small(mask: NDArray[np.bool_], min_area: float) -> NDArray[np.bool_]:
    """Remove the 8-connected components of fewer than `min_area` pixels, and nothing else.

    Args:
        mask: Boolean mask of shape (H, W).
        min_area: Smallest number of pixels kept.

    Returns:
        Boolean mask of shape (H, W).
    """
    labels = label(mask, connectivity=2)
    keep = np.bincount(labels.ravel()) >= min_area
    keep[0] = False
    return keep[labels]
