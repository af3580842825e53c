"""Pictures of heat maps: the radiograph, the map in colour over it, and a line that says what it is."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from anomalib_cxr import __version__
from anomalib_cxr.deploy.detector import Prediction, Thresholds
from anomalib_cxr.imaging.heat_map import blend_heat_map

LONGEST_SIDE = 1024
_OUTLINE = (255, 255, 255)
_STRIP = 28


def overlay(
    image: npt.NDArray[np.float32], prediction: Prediction, model: str, thresholds: Thresholds | None = None
) -> npt.NDArray[np.uint8]:
    """Draw a heat map over its radiograph.

    Pixels below the threshold keep their grey, but for a faint rim; those above are coloured and outlined in white.
    The line below the picture carries score, threshold, decision, model and "NOT FOR DIAGNOSIS".

    Args:
        image: (H, W) brightness in [0, 1].
        prediction: What the model said.
        model: Name of the model, for the line.
        thresholds: Where abnormality begins; None takes 0.5 for both.

    Returns:
        (h + strip, w, 3) uint8 RGB; the longest side of the radiograph is at most :data:`LONGEST_SIDE`.
    """
    thresholds = thresholds or Thresholds()
    factor = min(1.0, LONGEST_SIDE / max(image.shape))
    height, width = (max(1, round(side * factor)) for side in image.shape)
    grey = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if factor < 1 else image
    heat = cv2.resize(prediction.heat_map, (width, height), interpolation=cv2.INTER_LINEAR)
    # Colours are laid out for a threshold of 0.5.
    heat = np.interp(heat, (0.0, thresholds.pixel, 1.0), (0.0, 0.5, 1.0))
    picture = np.ascontiguousarray(blend_heat_map(grey, heat))
    inside = cv2.resize(prediction.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _OUTLINE, 1)
    return np.concatenate([picture, _strip(width, prediction, model, thresholds.image)])


def save_png(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture as PNG.

    Args:
        path: File to write.
        picture: (H, W, 3) RGB.
    """
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    path.write_bytes(encoded.tobytes())


def _strip(width: int, prediction: Prediction, model: str, threshold: float) -> npt.NDArray[np.uint8]:
    decision = "abnormal" if prediction.abnormal else "normal"
    says = f"score {prediction.score:.3f} {decision} (threshold {threshold:.3f})"
    text = f"NOT FOR DIAGNOSIS  {says}  {model}, anomalib-cxr {__version__}"
    strip = np.zeros((_STRIP, width, 3), np.uint8)
    (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    scale = 0.5 * min(1.0, (width - 8) / text_width)
    cv2.putText(strip, text, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, scale, _OUTLINE, 1, cv2.LINE_AA)
    return strip
