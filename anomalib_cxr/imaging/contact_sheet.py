"""Many small pictures on one sheet, to look a data set or a result over at a glance."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging.heat_map import TRUE_OUTLINE, draw_outlines, fitted_mask
from anomalib_cxr.imaging.lettering import lettering

_GAP = 2
_LETTERS = 12


def contact_sheet(
    images: Sequence[npt.NDArray[Any]],
    columns: int = 6,
    masks: Sequence[npt.NDArray[Any] | None] | None = None,
    titles: Sequence[str] | None = None,
    tile: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Lay pictures out in rows, masks outlined and titles above.

    Args:
        images: (H, W) grey or (H, W, 3) RGB pictures, float in [0, 1] or uint8. Sizes may differ.
        columns: Pictures in a row.
        masks: For each picture, (H, W) bool or number (not 0: inside), or None for no outline.
        titles: For each picture, text above it; what is too long for a line goes on in the next.
        tile: Longest side of a picture on the sheet in pixels; None takes the longest side of all the pictures.

    Returns:
        (rows, width, 3) uint8 RGB sheet on black.

    Raises:
        ValueError: If there is no picture, a picture has another shape or type, the counts of pictures, masks and
            titles differ, a mask has another size than its picture, or columns or tile is less than 1.

    Examples:
        >>> import numpy as np
        >>> contact_sheet([np.zeros((32, 32)), np.ones((32, 32))], columns=2).shape
        (34, 68, 3)
    """
    if not len(images):
        msg = "A contact sheet needs at least one picture."
        raise ValueError(msg)
    if columns < 1 or (tile is not None and tile < 1):
        msg = f"A contact sheet needs columns and tile of at least 1, got columns={columns}, tile={tile}."
        raise ValueError(msg)
    for name, listed in (("masks", masks), ("titles", titles)):
        if listed is not None and len(listed) != len(images):
            msg = f"A contact sheet of {len(images)} pictures needs as many {name}, got {len(listed)}."
            raise ValueError(msg)

    pictures = [_to_rgb(image, number) for number, image in enumerate(images)]
    side = tile or max(max(picture.shape[:2]) for picture in pictures)
    tiles = []
    for number, picture in enumerate(pictures):
        mask = None if masks is None else masks[number]
        if mask is not None and mask.shape != picture.shape[:2]:
            msg = f"Mask {number} of a contact sheet is {mask.shape}, its picture {picture.shape[:2]}."
            raise ValueError(msg)
        tiles.append(_tile(picture, mask, side))

    width = max(picture.shape[1] for picture in tiles) + _GAP
    above = (
        [] if titles is None else [lettering(title.splitlines() or [""], width - _GAP, _LETTERS) for title in titles]
    )
    title_height = max((strip.shape[0] for strip in above), default=0)
    height = max(picture.shape[0] for picture in tiles) + _GAP + title_height
    rows = math.ceil(len(tiles) / columns)
    sheet = np.zeros((rows * height, min(columns, len(tiles)) * width, 3), np.uint8)
    for number, picture in enumerate(tiles):
        cell = sheet[number // columns * height :, number % columns * width :][:height, :width]
        if above:
            strip = above[number]
            cell[title_height - strip.shape[0] : title_height, : strip.shape[1]] = strip
            cell = cell[title_height:]
        cell[: picture.shape[0], : picture.shape[1]] = picture
    return sheet


def _to_rgb(image: npt.NDArray[Any], number: int) -> npt.NDArray[np.uint8]:
    grey = image.ndim == 2
    if not (grey or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
        msg = f"Picture {number} of a contact sheet must be (H, W) or (H, W, 3), got {image.shape}."
        raise ValueError(msg)
    if np.issubdtype(image.dtype, np.floating):
        image = np.round(np.clip(np.nan_to_num(image), 0, 1) * 255).astype(np.uint8)
    elif image.dtype != np.uint8:
        msg = f"Picture {number} of a contact sheet must be float in [0, 1] or uint8, got {image.dtype}."
        raise ValueError(msg)
    return np.repeat(image[..., None], 3, axis=2) if grey else image


def _tile(picture: npt.NDArray[np.uint8], mask: npt.NDArray[Any] | None, side: int) -> npt.NDArray[np.uint8]:
    """A picture at its size on the sheet; outlined after the resize, so that the line stays one pixel wide."""
    factor = side / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    drawn = np.ascontiguousarray(resized, np.uint8)
    if mask is not None:
        draw_outlines(drawn, fitted_mask(mask, drawn.shape[:2]), TRUE_OUTLINE)
    return drawn
