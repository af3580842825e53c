"""Pictures in the rows and columns that their file stores, whatever orientation it states."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

T = TypeVar("T", bound=np.generic)


def turned_by_pillow(before: int, image: Image.Image) -> int:
    """Which orientation Pillow has applied: it turns TIFF files as it decodes them, and no others.

    Args:
        before: What :func:`stated_orientation` gave before the pixels were decoded.
        image: Image, decoded.

    Returns:
        In 1..8; 1 where the pixels are as they are stored.
    """
    return before if stated_orientation(image) != before else 1


def stated_orientation(image: Image.Image) -> int:
    """Orientation that a TIFF file states (TIFF 6.0, tag 274), in 1..8; 1 for none and for other formats."""
    if not isinstance(image, TiffImageFile):
        return 1
    stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    return stated if stated in range(1, 9) else 1


def as_stored(pixels: npt.NDArray[T], orientation: int) -> npt.NDArray[T]:
    """Turn pixels back that were shown in an orientation.

    Args:
        pixels: (H, W) or (H, W, C).
        orientation: The one applied, in 1..8.

    Returns:
        The pixels as they are stored; height and width change places where the orientation is 5 or more.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 6, 7}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 7, 8}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
