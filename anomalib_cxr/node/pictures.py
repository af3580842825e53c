"""Pictures of a film for the status page: the film, its heat map to be laid over it, and a small one of both."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomalib_cxr.files import write_bytes
from anomalib_cxr.imaging.heat_map import about_threshold, blend_heat_map, draw_outlines, smooth_heat_map
from anomalib_cxr.node.finding import Finding

LONGEST_SIDE = 768
THUMBNAIL = 160
FILM = "film.jpg"


def map_name(model_sha256: str) -> str:
    """File of a model's map beside the film."""
    return f"map-{model_sha256[:16]}.png"


def thumbnail_name(model_sha256: str) -> str:
    """File of the small picture of film and map."""
    return f"small-{model_sha256[:16]}.jpg"


def write_pictures(finding: Finding, folder: Path) -> None:
    """Write them.

    Args:
        finding: What was found.
        folder: Folder of the film's results.
    """
    factor = min(1.0, LONGEST_SIDE / max(finding.image.shape))
    size = tuple(max(1, round(side * factor)) for side in finding.image.shape)
    grey = cv2.resize(finding.image, size[::-1], interpolation=cv2.INTER_AREA)
    heat = smooth_heat_map(finding.prediction.heat_map, (size[0], size[1]))
    threshold = finding.thresholds.pixel
    film = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    both = np.ascontiguousarray(blend_heat_map(grey, about_threshold(heat, threshold)))
    draw_outlines(both, heat > threshold)
    shrink = min(1.0, THUMBNAIL / max(size))
    small = cv2.resize(both, (max(1, round(size[1] * shrink)), max(1, round(size[0] * shrink))),
                       interpolation=cv2.INTER_AREA)  # fmt: skip
    write_bytes(folder / FILM, _encode(".jpg", film))
    write_bytes(folder / map_name(finding.model.sha256), _encode(".png", both))
    write_bytes(folder / thumbnail_name(finding.model.sha256), _encode(".jpg", small))


def _encode(kind: str, picture: npt.NDArray[Any]) -> bytes:
    _, encoded = cv2.imencode(kind, np.ascontiguousarray(picture[..., ::-1]))
    return bytes(encoded.tobytes())
