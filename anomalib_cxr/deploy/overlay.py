"""Pictures of heat maps: the radiograph, the map in colour over it, and lines that say what it is."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomalib_cxr import __version__
from anomalib_cxr.deploy.detector import Prediction, Thresholds
from anomalib_cxr.imaging import SMOOTHED, Caption, heat_map_picture

LONGEST_SIDE = 1024


def overlay(
    image: npt.NDArray[np.float32],
    prediction: Prediction,
    model: str,
    thresholds: Thresholds | None = None,
    name: str = "",
    p_value: float | None = None,
    outside: bool = False,
    not_assessable: str = "",
) -> npt.NDArray[np.uint8]:
    """Draw a heat map over its radiograph.

    Pixels below the threshold keep their grey, but for a faint rim; those above are coloured the more the higher the
    map is, and outlined in white. The map is smoothed for display, and the picture says so. At the right is the scale
    of colours with the threshold, below are "NOT FOR DIAGNOSIS", name, decision, score, threshold, p-value and model.

    Args:
        image: (H, W) brightness in [0, 1].
        prediction: What the model said.
        model: Name of the model.
        thresholds: Where abnormality begins; None takes 0.5 for both.
        name: Of the film, see :func:`~anomalib_cxr.imaging.shown_name`; "" leaves it out.
        p_value: Of the score, if known.
        outside: Whether the score is beyond all those of the normal images that the p-value is taken from.
        not_assessable: Why the film should not be judged by its score, in place of the decision; "" where it may be.

    Returns:
        (h, w, 3) uint8 RGB, the radiograph in the upper left corner; its longest side is at most :data:`LONGEST_SIDE`.
    """
    thresholds = thresholds or Thresholds()
    caption = Caption(name, prediction.score, thresholds.image, prediction.abnormal, p_value, outside, not_assessable)
    lines = ["NOT FOR DIAGNOSIS", *caption.lines(), f"{model}, anomalib-cxr {__version__}; {SMOOTHED}"]
    return heat_map_picture(image, prediction.heat_map, lines, thresholds.pixel, LONGEST_SIDE)


def save_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture as PNG.

    Args:
        path: File to write.
        picture: (H, W, 3) RGB.
    """
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    path.write_bytes(encoded.tobytes())
