"""A heat map in colour over its radiograph."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

# Normalised maps have 0.5 at the pixel threshold: colour fades in below it, and is full a little above.
_FAINT, _FULL, _OPACITY = 0.35, 0.65, 0.45


def blend_heat_map(image: npt.NDArray[Any], heat: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Colour a radiograph where its normalised heat map is high.

    Pixels well below the threshold keep their grey.

    Args:
        image: (H, W) brightness in [0, 1].
        heat: (H, W) normalised heat map in [0, 1], the threshold at 0.5.

    Returns:
        (H, W, 3) uint8 RGB.

    Example:
        >>> import numpy as np
        >>> blend_heat_map(np.full((1, 2), 0.5), np.array([[0.1, 0.1]])).tolist()
        [[[128, 128, 128], [128, 128, 128]]]
    """
    shade = np.rint(np.clip((heat - _FAINT) / (1 - _FAINT), 0, 1) * 255).astype(np.uint8)
    colour = cv2.applyColorMap(shade, cv2.COLORMAP_JET)[..., ::-1] / 255.0
    opacity = _OPACITY * np.clip((heat - _FAINT) / (_FULL - _FAINT), 0, 1)[..., None]
    return np.rint(((1 - opacity) * image[..., None] + opacity * colour) * 255).astype(np.uint8)
