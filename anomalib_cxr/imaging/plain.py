"""Which files Pillow may decode in this process: those whose headers bound the time and the memory it takes."""

import io
import re
from typing import BinaryIO

from PIL import Image

from anomalib_cxr.imaging.codestream import NoSize, read_codestream
from anomalib_cxr.imaging.confined import need_limits
from anomalib_cxr.imaging.pixels import MAX_PIXELS
from anomalib_cxr.imaging.png import SIGNATURE, check_chunks
from anomalib_cxr.imaging.tiff import is_plain_tiff

MAX_FILE = 2**29
"""Largest file in bytes."""

SMALL_FILE, SMALL_IMAGE = 2**20, 2**22
"""Bytes and pixels of a file that even a slow decoder gets done with."""

_SCANNED = 10 * MAX_PIXELS  # pixels times scans: the ten scans of a progressive colour JPEG, at the largest size
_JPEG2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_BMP_PACKED = (1, 2)  # run lengths, which Pillow unpacks in Python
# Binary PBM, PGM and PPM of whole bytes; Pillow reads all others number by number in Python.
_PLAIN_PNM = re.compile(rb"P(4|5|6)\s(#[^\n]{0,200}\n|\s){0,4}\d{1,9}\s{1,4}\d{1,9}\s{1,4}(255\s|65535\s|)")
_SLOW = (b"GIF8", b"RIFF", b"P1", b"P2", b"P3", b"P5", b"P6", b"Py", b"Pf", b"PF")


def check_plain(file: BinaryIO) -> None:
    """Refuse a file by its structure, or send it to a process with limits, before Pillow opens it.

    Args:
        file: Seekable binary file; left at its start.

    Raises:
        NeedsLimits: If its structure does not bound what a decoder does.
        ValueError: If no radiograph is so large, or has so many parts.
    """
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE:
        msg = f"it has {size} bytes, more than the {MAX_FILE} that are read"
        raise ValueError(msg)
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    if head.startswith(SIGNATURE):
        check_chunks(file)
    elif head.startswith(b"\xff\xd8"):
        _check_jpeg(file, size)
    elif head.startswith(_JPEG2000):
        _check_jpeg2000(file)
    elif head[:2] in {b"II", b"MM"}:
        if not is_plain_tiff(file) and size > 8:
            need_limits()
    elif head.startswith(b"BM"):
        if size > SMALL_FILE and int.from_bytes(head[30:34], "little") in _BMP_PACKED:
            need_limits()
    elif head.startswith(_SLOW) and size > SMALL_FILE and not _PLAIN_PNM.match(head):
        need_limits()
    file.seek(0)


def check_opened(image: Image.Image) -> None:
    """The same by what Pillow has read of the header.

    Raises:
        NeedsLimits: If the format is a slow one and the image is not small.
    """
    if image.format in {"GIF", "WEBP"} and image.width * image.height > SMALL_IMAGE:
        need_limits()


def _check_jpeg(file: BinaryIO, size: int) -> None:
    """Few enough scans; garbage between segments only in small files, as Pillow looks through it byte by byte."""
    try:
        found = read_codestream(file.read())
    except NoSize:
        if size > SMALL_FILE:
            need_limits()
    except ValueError:
        need_limits()
    else:
        if found.scans * found.height * found.width > _SCANNED:
            need_limits()


def _check_jpeg2000(file: BinaryIO) -> None:
    """Only what a writer of radiographs makes."""
    try:
        plain = read_codestream(file.read()).plain
    except ValueError:
        plain = False
    if not plain:
        need_limits()
