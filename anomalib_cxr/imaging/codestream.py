"""Image size as the compressed pixels themselves state it, read before a decoder allocates by it."""

import struct

# Start of frame of every kind of JPEG (ITU-T T.81 table B.1; the last is JPEG-LS, ITU-T T.87), without the numbers
# between them that mean something else: Huffman tables, JPG and arithmetic conditioning.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_START_OF_SCAN = 0xDA
_JPEG2000 = b"\xff\x4f\xff\x51"


def codestream_size(codestream: bytes) -> tuple[int, int, int]:
    """Size stated by a JPEG, JPEG-LS or JPEG 2000 codestream.

    A decoder sets memory aside by these numbers, not by Rows and Columns of the DICOM header around them.

    Args:
        codestream: One compressed frame, with or without the boxes of a JP2 file around it.

    Returns:
        Height, width and number of channels.

    Raises:
        ValueError: If there is no frame header before the pixels.
    """
    try:
        if codestream.startswith(b"\xff\xd8"):
            return _jpeg_size(codestream)
        # SIZ follows at once (ISO/IEC 15444-1, A.5.1): right and lower end of the image on the reference grid, its
        # offset there, four numbers of the tiles, channels.
        siz = codestream.index(_JPEG2000) + len(_JPEG2000) + 4
        right, lower, left, upper = struct.unpack_from(">4I", codestream, siz)
        (channels,) = struct.unpack_from(">H", codestream, siz + 32)
        return lower - upper, right - left, channels
    except (struct.error, IndexError, ValueError) as error:
        msg = "its compressed pixels state no size"
        raise ValueError(msg) from error


def _jpeg_size(codestream: bytes) -> tuple[int, int, int]:
    """Walk over the marker segments to the frame header."""
    place = 2
    while True:
        if codestream[place] != 0xFF:
            msg = f"no marker at byte {place}"
            raise ValueError(msg)
        marker = codestream[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker in _STANDALONE:
            place += 2
        elif marker in _FRAME_HEADERS:
            height, width, channels = struct.unpack_from(">HHB", codestream, place + 5)
            return height, width, channels
        elif marker == _START_OF_SCAN:
            msg = "pixels before any frame header"
            raise ValueError(msg)
        else:
            (length,) = struct.unpack_from(">H", codestream, place + 2)
            place += 2 + length
