"""Whether the tags of a TIFF file bound what a decoder will do, read without making their values."""

import struct
from typing import BinaryIO

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value by its type
_BYTES = {1, 2, 6, 7}
_COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 259, 322, 323
_PLAIN_COMPRESSIONS = {1, 5, 8, 32773, 32946}  # none, LZW, deflate (two numbers), PackBits
_MAX_PAGES, _MAX_TAGS, _MAX_VALUES, _MAX_BYTES, _MAX_TILE = 16, 256, 2**17, 2**24, 2**24


def is_plain_tiff(file: BinaryIO) -> bool:
    """Whether every directory is small, every compression one of a single pass, and every tile no larger than a film.

    Args:
        file: Seekable binary file of TIFF signature (TIFF revision 6.0, section 2); left at its start.

    Returns:
        False too for BigTIFF. True where a directory is cut off, because no decoder gets further.
    """
    try:
        file.seek(0)
        head = file.read(8)
        order = "<" if head[:2] == b"II" else ">"
        magic, place = struct.unpack(order + "HI", head[2:])
        pages = 0
        while magic == 42 and place and pages < _MAX_PAGES:
            file.seek(place)
            (count,) = struct.unpack(order + "H", file.read(2))
            if count > _MAX_TAGS or not _is_plain_directory(file.read(12 * count), order):
                return False
            (place,) = struct.unpack(order + "I", file.read(4))
            pages += 1
        return magic == 42 and not place
    except struct.error:  # cut off, which is soon seen
        return True
    finally:
        file.seek(0)


def _is_plain_directory(entries: bytes, order: str) -> bool:
    """The rule of one directory."""
    tile = {_TILE_WIDTH: 1, _TILE_HEIGHT: 1}
    for place in range(0, len(entries), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", entries, place)
        if count * _SIZES.get(kind, 1) > (_MAX_BYTES if kind in _BYTES else _MAX_VALUES * 4):
            return False
        (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), entries, place + 8)
        if tag == _COMPRESSION and value not in _PLAIN_COMPRESSIONS:
            return False
        if tag in tile:
            tile[tag] = value
    return tile[_TILE_WIDTH] * tile[_TILE_HEIGHT] <= _MAX_TILE
