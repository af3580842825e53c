"""One reader for lesion masks: which pixels of a picture are drawn."""

import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from anomalib_cxr.imaging.confined import NeedsLimits, read_confined
from anomalib_cxr.imaging.dicom import is_dicom
from anomalib_cxr.imaging.orientation import as_stored
from anomalib_cxr.imaging.pgm import read_deep_pgm
from anomalib_cxr.imaging.plain import check_plain
from anomalib_cxr.imaging.radiograph import RadiographError, reason
from anomalib_cxr.imaging.raster import Picture, decode_deep_colour, open_picture, refuse_deep_colour_tiff

NUMBERS = 16
"""Levels that may number lesions or classes: a picture of more has soft edges."""

_GROUND = "no pixel of it is black, as the ground of a mask is, and there are several colours"
_FAINTEST = 64  # highest level of a lossy mask, of 255, below which it is no more than its own noise


class MaskReading(NamedTuple):
    """A mask, and how sure it is.

    Attributes:
        mask: (H, W) uint8, 1 where something is drawn.
        lossy: Whether its format changes pixels: JPEG, or WebP unless it is lossless.
        levels: Different levels of its pixels; a plain mask has two at most.
        between: Pixels that are neither black nor of its highest level.
    """

    mask: npt.NDArray[np.uint8]
    lossy: bool
    levels: int
    between: int

    @property
    def is_plain(self) -> bool:
        """Whether nothing had to be decided."""
        return self.levels <= 2 and not self.lossy


def read_mask(path: str | os.PathLike[str]) -> MaskReading:
    """Read a mask by its colours: black is the ground, everything else is drawn.

    The level of a pixel is that of its brightest channel, so that red counts as much as white; palettes are looked up.
    What is transparent is not drawn; where the colours of all that is visible are dark, or all are bright, the alpha
    channel itself is the mask, unless it is the same all over. What more than two levels mean:

    - whole numbers below :data:`NUMBERS`: numbered lesions or classes, each but 0 is drawn;
    - else soft edges: drawn is what has at least half of the highest level. Where there are no more than
      :data:`NUMBERS` levels, one that fills an area (3 x 3 pixels at least) is no edge and is drawn too.

    Rows and columns are those that the file stores, as those of :func:`~anomalib_cxr.imaging.read_radiograph`.

    Args:
        path: File to read, of any format of :func:`~anomalib_cxr.imaging.read_radiograph` but DICOM.

    Returns:
        The mask, and what had to be decided.

    Raises:
        RadiographError: If the file is missing or cannot be decoded; if no pixel is black though several colours are
            there; if it is lossy and nothing in it is brighter than its noise.
    """
    path = Path(path)
    try:
        try:
            levels, opacity = _decode(path)
        except NeedsLimits:
            levels, opacity = read_confined(path, None, f"{__name__}:{decode_mask.__name__}")
        with path.open("rb") as file:
            lossy = _is_lossy(file)
        return mask_of_levels(levels if opacity is None else _compose(levels, opacity), lossy)
    except Exception as error:
        msg = f"{path}: the mask cannot be read: {reason(error)}"
        raise RadiographError(msg) from error


def decode_mask(path: Path, bits: int | None) -> npt.NDArray[np.float32]:
    """Decode a mask in a process with limits, see :func:`~anomalib_cxr.imaging.confined.read_confined`.

    Args:
        path: File to read.
        bits: Unused: the depth of a mask does not matter.

    Returns:
        (2, H, W) float32: level of each pixel, 0 for black, and opacity in [0, 1].

    Raises:
        ValueError: If it is refused, with the reason; decoders raise other errors too.
    """
    del bits
    levels, opacity = _decode(path)
    return np.stack([levels, np.ones(levels.shape) if opacity is None else opacity]).astype(np.float32)


def _decode(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """(H, W) levels and, where there is an alpha channel, opacity."""
    if not path.is_file():
        msg = "it is not a file" if path.exists() else "there is no such file"
        raise ValueError(msg)
    with path.open("rb") as file:
        if is_dicom(file.read(132)):
            msg = "it is DICOM: save masks as PNG"
            raise ValueError(msg)
        check_plain(file)
        deep = read_deep_pgm(file, None)
        if deep is not None:
            return deep, None
        try:
            with open_picture(file) as picture:
                levels, opacity = _planes(file, picture)
        except UnidentifiedImageError as error:
            msg = "it is no image of a known format"
            raise ValueError(msg) from error
    turned = picture.orientation
    return as_stored(levels, turned), None if opacity is None else as_stored(opacity, turned)


def _planes(file: BinaryIO, picture: Picture) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Level and opacity of each pixel, in the orientation that Pillow gives."""
    image = picture.image
    if picture.is_deep_colour:
        pixels = decode_deep_colour(file)
        return _brightest(pixels[..., :3]), pixels[..., 3] / 65535 if pixels.shape[-1] == 4 else None
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image)
        if getattr(image, "tag_v2", {}).get(262) == 0:
            msg = "it is a deep TIFF whose zero is white: save it as PNG"
            raise ValueError(msg)
        key = image.info.get("transparency")
        return pixels, None if key is None else (pixels != key).astype(np.float32)
    refuse_deep_colour_tiff(image)
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        return _brightest(pixels[..., :3]), pixels[..., 3] / 255
    if image.mode in {"1", "L"}:
        return np.asarray(image.convert("L")), None
    return _brightest(np.asarray(image.convert("RGB"))), None


def _brightest(colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Level of the brightest channel of (H, W, 3) colours."""
    levels = colours.max(axis=-1)
    if levels.min() == levels.max() > 0 and (colours != colours[0, 0]).any():
        raise ValueError(_GROUND)
    return levels


def _compose(levels: npt.NDArray[Any], opacity: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Levels over a black ground, or the opacity itself where it tells what is drawn and the levels do not."""
    if opacity.min() == opacity.max():
        return levels
    seen = opacity >= 0.5
    bright = levels[seen] >= max(float(levels.max()) / 2, np.finfo(np.float32).tiny)
    return opacity if bright.all() or not bright.any() else levels * opacity


def mask_of_levels(levels: npt.NDArray[Any], lossy: bool = False) -> MaskReading:
    """Decide which levels are drawn, see :func:`read_mask`.

    Args:
        levels: (H, W), 0 is the ground.
        lossy: Whether they come from a format that changes pixels.

    Returns:
        The mask.

    Raises:
        ValueError: If levels are negative or no numbers, or nothing is ground though there are several.
    """
    lowest, highest = float(levels.min()), float(levels.max())
    if not np.isfinite([lowest, highest]).all():
        msg = "it holds pixels that are no number"
        raise ValueError(msg)
    if lowest < 0:
        msg = f"it holds negative pixels (lowest {lowest:g})"
        raise ValueError(msg)
    if lossy and 0 < highest < _FAINTEST:
        msg = f"its format is lossy and its highest level {highest:g} of 255, no more than noise: save it as PNG"
        raise ValueError(msg)
    between = (levels > 0) & (levels < highest)
    if not between.any():
        return MaskReading((levels > 0).astype(np.uint8), lossy, 1 + (lowest < highest), 0)
    values = np.unique(levels)
    if lowest > 0 and len(values) <= NUMBERS:
        raise ValueError(_GROUND)
    mask = levels >= highest / 2
    if not lossy and len(values) <= NUMBERS:
        if highest < NUMBERS and (values % 1 == 0).all():
            mask = levels > 0
        else:
            mask |= np.isin(levels, [value for value in _areas(levels) if value >= highest / 8])
    return MaskReading(mask.astype(np.uint8), lossy, len(values), int(between.sum()))


def _areas(levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Levels that fill 3 x 3 pixels somewhere."""
    levels = levels.astype(np.float32)  # OpenCV knows no wide integers
    square = np.ones((3, 3), np.uint8)
    return np.unique(levels[cv2.erode(levels, square) == cv2.dilate(levels, square)])


def _is_lossy(file: BinaryIO) -> bool:
    """Whether a file is JPEG, or WebP with a lossy picture (RIFF container of RFC 9649, section 2)."""
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WEBP":
        return head.startswith(b"\xff\xd8")
    while len(chunk := file.read(8)) == 8:
        if chunk[:4] in {b"VP8 ", b"VP8L"}:
            return chunk[:4] == b"VP8 "
        length = int.from_bytes(chunk[4:], "little")
        file.seek(length + length % 2, 1)
    return False
