"""PNG, JPEG, TIFF and the other formats that Pillow decodes, as brightness in [0, 1]."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from anomalib_cxr.imaging.orientation import as_stored, stated_orientation, turned_by_pillow
from anomalib_cxr.imaging.pgm import read_deep_pgm
from anomalib_cxr.imaging.pixels import check_float, check_size, guess_depth, scale, to_grey
from anomalib_cxr.imaging.plain import check_opened, check_plain
from anomalib_cxr.imaging.png import PngHeader, read_png_header

# Named one by one, because Pillow would start Ghostscript for an EPS file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "JPEG2000", "WEBP", "GIF")

# Pillow stretches samples of more than 8 bits to 16 in these, by the white level that the file states.
STRETCHED = {"PPM", "JPEG2000"}

MAX_DEEP_COLOUR = 2**25
"""Largest 16-bit colour image, in pixels: it is decoded twice, and takes eight bytes a pixel each time."""


class Picture(NamedTuple):
    """An image that Pillow has decoded.

    Attributes:
        image: The image, perhaps turned.
        png: What Pillow does not tell of a PNG file; None for other formats.
        orientation: By which Pillow has turned it, see :func:`~anomalib_cxr.imaging.orientation.as_stored`.
    """

    image: Image.Image
    png: PngHeader | None
    orientation: int

    @property
    def is_deep_colour(self) -> bool:
        """Whether it is a 16-bit PNG with colour or alpha, of which Pillow has dropped the lower 8 bits."""
        return self.png is not None and self.png.bits == 16 and self.png.colour_type != 0


def read_raster(file: BinaryIO, bits: int | None = None) -> npt.NDArray[np.float32]:
    """Decode one image; see :func:`read_radiograph` for what the pixels mean.

    Args:
        file: Binary file at its start.
        bits: Stored depth, or None to take it from the file.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        PIL.UnidentifiedImageError: If Pillow knows no such format.
        ValueError: If the file is refused, with the reason; Pillow's decoders raise other errors too.
    """
    check_plain(file)
    deep = read_deep_pgm(file, bits)
    if deep is not None:
        return deep
    with open_picture(file) as picture:
        return as_stored(_brightness(file, picture, bits), picture.orientation)


@contextmanager
def open_picture(file: BinaryIO) -> Iterator[Picture]:
    """Decode one image by Pillow, within the limits of this room.

    Args:
        file: Binary file that :func:`~anomalib_cxr.imaging.plain.check_plain` has let through.

    Yields:
        The image.

    Raises:
        PIL.UnidentifiedImageError: If Pillow knows no such format.
        ValueError: If it is too small or too large, or holds several images; Pillow's decoders raise other errors too.
    """
    png = read_png_header(file)
    with Image.open(file, formats=FORMATS) as image:
        check_size(image.height, image.width)
        check_opened(image)
        stated = stated_orientation(image)
        picture = Picture(image, png, 1)
        if picture.is_deep_colour and image.width * image.height > MAX_DEEP_COLOUR:
            size = f"{image.height} x {image.width}"
            msg = f"it has {size} pixels of 16-bit colour, more than the {MAX_DEEP_COLOUR} that are read"
            raise ValueError(msg)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            msg = f"it holds {frames} images, and a radiograph is one"
            raise ValueError(msg)
        image.load()
        yield picture._replace(orientation=turned_by_pillow(stated, image))


def _brightness(file: BinaryIO, picture: Picture, bits: int | None) -> npt.NDArray[np.float32]:
    """Brightness of an image in the orientation that Pillow gives."""
    image, png, _ = picture
    if picture.is_deep_colour:
        return _deep_colour_png(file, png, bits)
    if image.mode.startswith("I"):
        return _deep_grey(image, png, bits)
    if image.mode == "F":
        if bits is not None:
            msg = f"its pixels are floats, so bits={bits} cannot be their depth"
            raise ValueError(msg)
        return check_float(np.asarray(image))
    refuse_deep_colour_tiff(image)
    return _shallow(image, bits)


def refuse_deep_colour_tiff(image: Image.Image) -> None:
    """Refuse a TIFF of which Pillow has dropped bits.

    Raises:
        ValueError: If it has more than 8 bits a channel, and several.
    """
    if isinstance(image, TiffImageFile) and max(np.atleast_1d(image.tag_v2.get(258, 8))) > 8:
        msg = "it is a colour TIFF of more than 8 bits a channel, which would lose its depth: save it in grey"
        raise ValueError(msg)


def _shallow(image: Image.Image, bits: int | None) -> npt.NDArray[np.float32]:
    """Up to 8 bits a channel, colour or grey: luma, over black where the image is transparent."""
    depth = _stated_depth(bits, container=8) or 8
    if image.has_transparency_data:
        image = image.convert("RGBA")
        grey = scale(np.asarray(image.convert("RGB").convert("L")), depth)
        return grey * scale(np.asarray(image.getchannel("A")), 8)
    if image.mode not in {"1", "L"}:
        image = image.convert("RGB")
    return scale(np.asarray(image.convert("L")), depth)


def _deep_grey(image: Image.Image, png: PngHeader | None, bits: int | None) -> npt.NDArray[np.float32]:
    """Grey integers of 12, 16 or 32 bits."""
    pixels = np.asarray(image)
    depth = _stated_depth(bits, container=16 if image.mode.startswith("I;16") else 32)
    if image.format in STRETCHED:
        return scale(pixels, 16)
    if isinstance(image, TiffImageFile):
        (container,) = np.atleast_1d(image.tag_v2.get(258, 16))
        depth = depth or (int(container) if container < 16 else None)
        # Pillow turns WhiteIsZero (photometric 0) the right way round for 8 bits, but not for 16.
        if image.tag_v2.get(262) == 0:
            return 1 - scale(pixels, depth or guess_depth(int(pixels.max())))
    key = image.info.get("transparency")
    if key is not None:
        pixels = np.where(pixels == key, 0, pixels)
    return scale(pixels, depth or _png_depth(pixels, png))


def _deep_colour_png(file: BinaryIO, png: PngHeader | None, bits: int | None) -> npt.NDArray[np.float32]:
    """Luma of 16-bit colour, over black where the image is transparent."""
    depth = _stated_depth(bits, container=16)
    pixels = decode_deep_colour(file)
    grey = to_grey(pixels[..., :3])
    brightness = scale(grey, depth or _png_depth(grey, png))
    return brightness if pixels.shape[-1] == 3 else brightness * scale(pixels[..., 3], 16)


def decode_deep_colour(file: BinaryIO) -> npt.NDArray[np.uint16]:
    """Decode a 16-bit PNG with colour or alpha, which Pillow cuts to 8 bits and OpenCV does not.

    Args:
        file: File that Pillow has decoded before, so it is whole.

    Returns:
        (H, W, 3) or, with alpha, (H, W, 4), red first.

    Raises:
        ValueError: If OpenCV decodes anything else.
    """
    file.seek(0)
    pixels: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        msg = "its 16-bit colour pixels cannot be decoded"
        raise ValueError(msg)
    return pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]


def _stated_depth(bits: int | None, container: int) -> int | None:
    """Check the depth given by the caller against the container."""
    if bits is not None and bits > container:
        msg = f"bits={bits} is more than the {container} bits its pixels are kept in"
        raise ValueError(msg)
    return bits


def _png_depth(pixels: npt.NDArray[np.integer], png: PngHeader | None) -> int:
    """Depth of 16-bit samples: by sBIT if it is stated, else guessed from the highest pixel.

    The PNG specification (12.4, sample depth scaling) has a writer stretch its samples to the whole container and note
    their depth in sBIT; many leave them as they were. The highest pixel tells which of the two was done.
    """
    highest = int(pixels.max())
    if png is not None and png.significant_bits is not None and 1 <= png.significant_bits <= 16:
        return png.significant_bits if highest < 1 << png.significant_bits else 16
    return guess_depth(highest)
