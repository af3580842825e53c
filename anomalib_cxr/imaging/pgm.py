"""Grey PGM of more than 8 bits, which Pillow reads pixel by pixel in Python: 48 s for 8192 x 8192."""

import re
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging.pixels import check_size

# Magic number, then width, height and white level, apart by blanks and comments; one blank before the pixels.
_GAP = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(rb"P5" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,5})\s")


def read_deep_pgm(file: BinaryIO, bits: int | None) -> npt.NDArray[np.float32] | None:
    """Read a binary PGM whose white level is above 255 (netpbm, PGM format).

    Args:
        file: Seekable binary file at its start; left there where it is another.
        bits: Stored depth, or None. The file states its white level, which need not be one of whole bits.

    Returns:
        (H, W) float32 in [0, 1]: pixel over white level. None if it is another file, or its header is not within the
        first 512 bytes.

    Raises:
        ValueError: If the file is refused, with the reason.
    """
    header = _HEADER.match(file.read(512))
    white = 0 if header is None else int(header[3])
    if header is None or not 255 < white < 2**16:
        file.seek(0)
        return None
    width, height = int(header[1]), int(header[2])
    check_size(height, width)
    if bits is not None and bits > 16:
        msg = f"bits={bits} is more than the 16 bits its pixels are kept in"
        raise ValueError(msg)
    file.seek(header.end())
    data = file.read(2 * height * width)
    if len(data) < 2 * height * width:
        msg = f"it is truncated: {len(data)} bytes of pixels where {height} x {width} need {2 * height * width}"
        raise ValueError(msg)
    pixels = np.frombuffer(data, ">u2").reshape(height, width)
    if pixels.max() > white:
        msg = f"its highest pixel, {pixels.max()}, is above its white level {white}"
        raise ValueError(msg)
    film = pixels.astype(np.float32)
    film /= np.float32(white)
    return film
