"""From stored integers to brightness: what every file format of this room shares."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

STRIP = 2**20
"""Pixels that are worked on at a time where a step needs several times the memory of its result."""

MAX_PIXELS = 2**26
"""Largest image that is read, in pixels (8192 x 8192; the largest chest detectors give about 20 million).

A header that claims more is refused before anything is allocated for its pixels.
"""

DEPTHS = (10, 12, 14, 16)
"""Bits a radiograph is stored with when it has more than 8."""


def check_size(height: int, width: int) -> None:
    """Refuse what is no radiograph by its size alone.

    Raises:
        ValueError: If the image is less than two pixels high or wide, or has more than :data:`MAX_PIXELS`.
    """
    if height < 2 or width < 2:
        msg = f"it has {height} x {width} pixels, too few for a radiograph"
        raise ValueError(msg)
    if height * width > MAX_PIXELS:
        msg = f"its header claims {height} x {width} pixels, more than the {MAX_PIXELS} that are read"
        raise ValueError(msg)


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of an image, in pieces of about :data:`STRIP` pixels."""
    rows = max(1, STRIP // max(1, shape[1]))
    for start in range(0, shape[0], rows):
        yield slice(start, start + rows)


def guess_depth(highest: int) -> int:
    """Guess the stored depth of a 16-bit container: the smallest of :data:`DEPTHS` that holds the highest pixel.

    8 is not among them: who needs no more than 8 bits does not write a 16-bit file, and a nearly blank exposure must
    not be stretched to full brightness. An image so dark that it uses less than a quarter of its depth is taken for a
    shallower one and comes out brighter than it is; only who knows the true depth can tell (``bits`` of
    :func:`read_radiograph`, or the file's own sBIT).

    Args:
        highest: Highest pixel of the image.

    Raises:
        ValueError: If it needs more than 16 bits.
    """
    for depth in DEPTHS:
        if highest < 1 << depth:
            return depth
    msg = f"its highest pixel, {highest}, needs more than {DEPTHS[-1]} bits: give the stored depth as bits=..."
    raise ValueError(msg)


def scale(pixels: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.float32]:
    """Divide stored integers by the highest value of their depth.

    Args:
        pixels: Stored values, any shape.
        bits: Depth they are stored with.

    Returns:
        ``pixels / (2**bits - 1)``, float32 in [0, 1].

    Raises:
        ValueError: If a pixel is negative or does not fit the depth.
    """
    lowest, highest = int(pixels.min()), int(pixels.max())
    white = (1 << bits) - 1
    if lowest < 0:
        msg = f"it has negative pixels (lowest {lowest}), and no black level is known"
        raise ValueError(msg)
    if highest > white:
        msg = f"its highest pixel, {highest}, does not fit {bits} bits"
        raise ValueError(msg)
    if bits <= 24:
        film = pixels.astype(np.float32)
        film /= np.float32(white)
        return film
    # Not whole in float32.
    return (pixels.astype(np.float64) / white).astype(np.float32)


def check_float(pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Pass float pixels that lie in [0, 1]; nothing tells the white level of any others.

    Raises:
        ValueError: If a pixel is not finite or lies outside [0, 1].
    """
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not (lowest >= 0 and highest <= 1):
        msg = f"its float pixels run from {lowest:g} to {highest:g}: outside [0, 1] no white level is known"
        raise ValueError(msg)
    return pixels.astype(np.float32)


def to_grey(colour: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Luma of ITU-R BT.601 in the 16-bit fixed point that Pillow uses for 8-bit images, for any depth.

    The three weights sum to one exactly, so three equal channels give that channel.

    Args:
        colour: (H, W, 3) integers, red first.

    Returns:
        (H, W) integers of the same type.
    """
    grey = np.empty(colour.shape[:-1], colour.dtype)
    for rows in strips(colour.shape):
        red, green, blue = np.moveaxis(colour[rows].astype(np.int64), -1, 0)
        grey[rows] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    return grey
