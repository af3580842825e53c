"""One reader for the files that chest radiographs come in."""

import operator
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from anomalib_cxr.imaging.confined import NeedsLimits, read_confined
from anomalib_cxr.imaging.dicom import is_dicom, read_dicom
from anomalib_cxr.imaging.raster import read_raster

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
RADIOGRAPH_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff"}) | DICOM_SUFFIXES
"""Lower-case suffixes of the files that :func:`read_radiograph` is meant for."""


class RadiographError(ValueError):
    """A file that cannot be read as one radiograph. The message names the file and the reason."""


def is_radiograph(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like a radiograph, without decoding it.

    By its suffix; a file without one, or named by a DICOM identifier (``1.2.840.10008``), counts if it starts as DICOM
    does. ``DICOMDIR``, the table of contents of an archive or a CD, does not.

    Args:
        path: File to look at. It is opened only if its suffix does not tell.

    Returns:
        False too for a directory, a missing or an unreadable file whose suffix does not tell.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix and not suffix[1:].isdecimal():
        return suffix in RADIOGRAPH_SUFFIXES
    try:
        return path.name != "DICOMDIR" and path.is_file() and is_dicom(_head(path))
    except OSError:
        return False


def read_radiograph(path: str | os.PathLike[str], *, bits: int | None = None) -> npt.NDArray[np.float32]:
    """Read a radiograph as brightness, dark air and bright bone, at the depth it was stored with.

    The format is told by the content, not by the name.

    - **8 bits** (JPEG, PNG, BMP, ...): ``pixel / 255``. Colour turns grey by Pillow's luma (ITU-R BT.601), which
      leaves three equal channels as they are; transparent pixels are laid over black.
    - **More than 8 bits** (PNG, TIFF): ``pixel / (2**depth - 1)``. The depth is ``bits``, else what the file states
      (sBIT of a PNG, 12 bits a sample of a TIFF), else the smallest of 10, 12, 14 and 16 that holds the highest pixel.
      An image that is dark all over is then read too bright: give ``bits`` where a table lists the depth, as PadChest's
      ``BitsStored_DICOM`` does. Float pixels must lie in [0, 1].
    - **DICOM**: modality LUT or rescale; then the first VOI LUT, else the first window with its VOI LUT function,
      else the whole range of BitsStored (never the image's own lowest and highest value); MONOCHROME1 and an INVERSE
      presentation are inverted; padding pixels are black; colour turns grey. Needs the ``dicom`` extra.

    The rows and columns are those that the file stores, in every format: an orientation, of EXIF or TIFF, is not
    applied, because boxes, and masks saved in another format, are in stored coordinates.
    :func:`~anomalib_cxr.imaging.mask.read_mask` keeps the same rule.

    Args:
        path: File to read.
        bits: Stored depth, at least 1, or None. A DICOM file states its own, which must agree.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        RadiographError: If the file is missing, empty, truncated or no image; if it has several frames, fewer than two
            rows or columns or more than :data:`MAX_PIXELS` pixels; if its pixels do not fit ``bits``; if DICOM
            support is not installed.
        ValueError: If ``bits`` is less than 1.

    Examples:
        >>> from anomalib_cxr.imaging import read_radiograph
        >>> image = read_radiograph("chest.png", bits=12)  # doctest: +SKIP
        >>> image.dtype, image.ndim, image.min() >= 0, image.max() <= 1  # doctest: +SKIP
        (dtype('float32'), 2, True, True)
    """
    if bits is not None and operator.index(bits) < 1:
        msg = f"bits must be at least 1, got {bits}"
        raise ValueError(msg)
    path = Path(path)
    try:
        try:
            film = read_unconfined(path, bits)
        except NeedsLimits:
            film = read_confined(path, bits)
        if not (film.min() >= 0 and film.max() <= 1):  # NaN too
            msg = f"its brightness runs from {film.min():g} to {film.max():g}"
            raise ValueError(msg)
    except Exception as error:
        # Whatever a broken file makes a decoder stumble over.
        msg = f"{path} cannot be read as a radiograph: {reason(error)}"
        raise RadiographError(msg) from error
    return film


def may_be_dicom(path: Path) -> bool:
    """Whether pydicom may be asked to read a file."""
    return is_dicom(_head(path)) or path.suffix.lower() in DICOM_SUFFIXES


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def read_unconfined(path: Path, bits: int | None) -> npt.NDArray[np.float32]:
    """Read by content in this process; every reason to refuse is an exception of some kind.

    Raises:
        NeedsLimits: If the file is to be read by :func:`~anomalib_cxr.imaging.confined.read_confined`.
    """
    if not path.is_file():
        msg = "it is not a file" if path.exists() else "there is no such file"
        raise ValueError(msg)
    head = _head(path)
    if not head:
        msg = "it is empty"
        raise ValueError(msg)
    if is_dicom(head):
        return read_dicom(path, bits)
    try:
        with path.open("rb") as file:
            return read_raster(file, bits)
    except UnidentifiedImageError as error:
        # Old archives hold DICOM files without the preamble; only their name tells.
        if path.suffix.lower() in DICOM_SUFFIXES:
            return read_dicom(path, bits)
        msg = "it is no image of a known format"
        raise ValueError(msg) from error


def _head(path: Path) -> bytes:
    """First bytes of a file, as many as tell a DICOM file."""
    with path.open("rb") as file:
        return file.read(132)
