"""What Pillow does not tell of a PNG file: bits a sample, the depth its sBIT states, and the number of its chunks."""

import struct
from typing import BinaryIO, NamedTuple

MAX_CHUNKS = 2**16
"""Chunks of one file. Writers put 8 KiB of packed pixels and more in one; a reader handles them one by one."""

SIGNATURE = b"\x89PNG\r\n\x1a\n"


class PngHeader(NamedTuple):
    """What stands before the pixels of a PNG file.

    Attributes:
        bits: Bits a sample of the container: 1, 2, 4, 8 or 16.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
        significant_bits: Depth stated by the sBIT chunk (of the first channel), or None without one.
    """

    bits: int
    colour_type: int
    significant_bits: int | None


def read_png_header(file: BinaryIO) -> PngHeader | None:
    """Read the chunks before the pixels (PNG specification, third edition, 11.2.1 and 11.3.2.7).

    Args:
        file: Seekable binary file; left where it was.

    Returns:
        The header, or None if this is no PNG file or it breaks off before its size.
    """
    start = file.tell()
    try:
        file.seek(0)
        head = file.read(33)  # signature, length and name of IHDR, its 13 bytes, checksum
        if len(head) < 33 or head[:8] != SIGNATURE or head[12:16] != b"IHDR":
            return None
        bits, colour_type = head[24], head[25]
        while len(chunk := file.read(8)) == 8 and chunk[4:] not in {b"IDAT", b"IEND"}:
            (length,) = struct.unpack(">I", chunk[:4])
            content = file.read(1) if length else b""
            if chunk[4:] == b"sBIT" and content:
                return PngHeader(bits, colour_type, content[0])
            file.seek(length - len(content) + 4, 1)
        return PngHeader(bits, colour_type, None)
    finally:
        file.seek(start)


def check_chunks(file: BinaryIO) -> None:
    """Refuse a file of more chunks than pixels need.

    Args:
        file: Seekable binary file of PNG signature; left at its start.

    Raises:
        ValueError: If there are more than :data:`MAX_CHUNKS`.
    """
    file.seek(len(SIGNATURE))
    for _ in range(MAX_CHUNKS):
        chunk = file.read(8)
        if len(chunk) < 8 or chunk[4:] == b"IEND":
            file.seek(0)
            return
        file.seek(struct.unpack(">I", chunk[:4])[0] + 4, 1)
    msg = f"it has more than {MAX_CHUNKS} chunks"
    raise ValueError(msg)
