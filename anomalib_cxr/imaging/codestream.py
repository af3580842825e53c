"""What compressed pixels state of themselves, read by walking over their segments before a decoder allocates by it."""

import re
import struct
from math import ceil
from typing import NamedTuple

MAX_SEGMENTS = 10_000
"""Marker segments, boxes or tile parts of one picture. Writers make a few dozen; a decoder handles them one by one."""

_PLAIN_SCANS = 4
_PLAIN_JPEG_SAMPLES = 2**25

# Frame headers (ITU-T T.81 table B.1; the last is JPEG-LS, ITU-T T.87) of the processes that DICOM and radiographs use.
_FRAMES = {0xC0: "JPEG", 0xC1: "JPEG", 0xC2: "JPEG", 0xC3: "JPEG", 0xF7: "JPEG-LS"}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_PROGRESSIVE, _END_OF_IMAGE, _START_OF_SCAN, _PRESETS = 0xC2, 0xD9, 0xDA, 0xF8
# Huffman and quantisation tables, restart interval, application data, comment. All else (hierarchical frames,
# arithmetic coding, a height that comes after the pixels) is refused.
_HARMLESS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# Within a scan, FF stands before 00 in JPEG and before a byte below 80 in JPEG-LS where it is no marker.
_NEXT_MARKER = {
    "JPEG": re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL),
    "JPEG-LS": re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]", re.DOTALL),
}

_FILL = re.compile(rb"\xff{1,1024}(?!\xff)")

_JP2_SIGNATURE = b"\0\0\0\x0cjP  "
# JPEG 2000 markers (ISO/IEC 15444-1, table A.2).
_SIZ, _COD, _QCD, _COM, _TLM, _PLT, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF5C, 0xFF64, 0xFF55, 0xFF58, 0xFF90, 0xFF93
_PLAIN_TILES, _PLAIN_LAYERS, _PLAIN_LEVELS, _PLAIN_PLANES, _PLAIN_SAMPLES = 1024, 64, 10, 22, 2**24


class NoSize(ValueError):  # noqa: N818
    """A codestream that breaks off, or leaves its form, before it has stated its size."""


class Codestream(NamedTuple):
    """What one compressed picture states before its pixels.

    Attributes:
        height: Rows.
        width: Columns.
        channels: Samples a pixel.
        precision: Bits a sample.
        signed: Whether samples are signed; None where the format cannot say (JPEG, JPEG-LS).
        family: JPEG, JPEG-LS or JPEG 2000.
        scans: Scans of a JPEG; each costs a decoder a pass over all pixels, even an empty one. 1 for JPEG 2000.
        plain: Whether its structure bounds the time and memory of a decoder. Where it does not, the codestream is
            allowed, but a decoder needs limits.
        data: The codestream without the boxes of a JP2 file around it.
    """

    height: int
    width: int
    channels: int
    precision: int
    signed: bool | None
    family: str
    scans: int
    plain: bool
    data: bytes

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, self.channels


def read_codestream(data: bytes) -> Codestream:
    """Walk over a JPEG, JPEG-LS or JPEG 2000 codestream.

    A decoder sets memory aside by these numbers, not by Rows and Columns of the DICOM header around them.

    Args:
        data: One compressed picture, with or without the boxes of a JP2 file around it.

    Returns:
        What it states.

    Raises:
        NoSize: If it breaks off before it states its size.
        ValueError: If it holds what no radiograph needs: several frame headers, hierarchical or arithmetic coding,
            subsampled JPEG 2000, too many segments.
    """
    try:
        return _walk_jpeg(data) if data.startswith(b"\xff\xd8") else _walk_jpeg2000(_unbox(data))
    except (struct.error, IndexError) as error:
        msg = "its compressed pixels state no size"
        raise NoSize(msg) from error


def _walk_jpeg(data: bytes) -> Codestream:
    """Marker segments up to the end of the image (ITU-T T.81, annex B)."""
    found: Codestream | None = None
    place, scans, progressive = 2, 0, False

    def whole(found: Codestream) -> Codestream:
        samples = found.height * found.width * found.channels
        plain = not progressive and scans <= _PLAIN_SCANS and samples <= _PLAIN_JPEG_SAMPLES
        return found._replace(scans=scans, plain=plain)

    for _ in range(MAX_SEGMENTS):
        if found is not None and place >= len(data) - 1:  # cut off: the decoder's to judge
            return whole(found)
        if data[place] != 0xFF:
            msg = f"its compressed pixels state no size: there is no marker at their byte {place}"
            raise NoSize(msg)
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place = _skip_fill(data, place)
            continue
        if marker in _STANDALONE:
            place += 2
            continue
        if marker == _END_OF_IMAGE and found is not None and scans:
            return whole(found)
        (length,) = struct.unpack_from(">H", data, place + 2)
        content = data[place + 4 : place + 2 + length]
        if marker in _FRAMES:
            if found is not None:
                msg = "its compressed pixels hold several frame headers"
                raise ValueError(msg)
            precision, height, width, channels = struct.unpack_from(">BHHB", content)
            found = Codestream(height, width, channels, precision, None, _FRAMES[marker], 0, False, data)
            progressive = marker == _PROGRESSIVE
        elif marker == _START_OF_SCAN:
            if found is None:
                msg = "its compressed pixels state no size: a scan comes before any frame header"
                raise NoSize(msg)
            scans += 1
            following = _NEXT_MARKER[found.family].search(data, place + 2 + length)
            if following is None:
                return whole(found)
            place = following.start()
            continue
        # A JPEG XT extension holds a second picture; tables and sizes of JPEG-LS redefine the first.
        elif (
            (marker != _PRESETS and marker not in _HARMLESS)
            or (marker == _PRESETS and content[:1] != b"\x01")
            or (marker == 0xEB and content[:2] == b"JP" and content[12:16] != b"jumb")  # not: content credentials
        ):
            msg = f"its compressed pixels hold a segment FF{marker:02X}, which no radiograph needs"
            raise ValueError(msg)
        place += 2 + length
    msg = f"its compressed pixels have more than {MAX_SEGMENTS} segments"
    raise ValueError(msg)


def _skip_fill(data: bytes, place: int) -> int:
    """Place of the last of several FF; no writer puts more than a few."""
    following = _FILL.match(data, place)
    if following is None:
        msg = f"its compressed pixels state no size: byte {place} starts a long row of FF"
        raise NoSize(msg)
    return following.end() - 1


def _unbox(data: bytes) -> bytes:
    """Codestream of a JP2 file (ISO/IEC 15444-1, annex I), or what is given where it is no JP2 file."""
    if not data.startswith(_JP2_SIGNATURE):
        return data
    place = 0
    for _ in range(MAX_SEGMENTS):
        length, kind = struct.unpack_from(">I4s", data, place)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
            header = 16
        elif length == 0:  # up to the end of the file
            length = len(data) - place
        if length < header:
            msg = f"its JPEG 2000 box at byte {place} states a length of {length}"
            raise ValueError(msg)
        if kind == b"jp2c":
            return data[place + header : place + length]
        place += length
    msg = f"its JPEG 2000 file has more than {MAX_SEGMENTS} boxes"
    raise ValueError(msg)


def _walk_jpeg2000(data: bytes) -> Codestream:
    """Main header (ISO/IEC 15444-1, A.5.1 for SIZ, which comes first) and the heads of the tile parts."""
    if data[:4] != b"\xff\x4f\xff\x51":
        msg = "its compressed pixels state no size: they are no JPEG, JPEG-LS or JPEG 2000"
        raise NoSize(msg)
    right, lower, left, upper, tile_width, tile_height, tile_left, tile_upper, channels = struct.unpack_from(
        ">8IH", data, 8
    )
    samples = [struct.unpack_from(">3B", data, 42 + 3 * channel) for channel in range(min(channels, 4))]
    if not 1 <= channels <= 4 or len(set(samples)) > 1 or samples[0][1:] != (1, 1):
        msg = f"its JPEG 2000 pixels have {channels} channels of unlike or subsampled kinds"
        raise ValueError(msg)
    if not tile_width or not tile_height or left >= right or upper >= lower:
        msg = "its JPEG 2000 pixels or their tiles have no size"
        raise ValueError(msg)
    tiles = ceil((right - tile_left) / tile_width) * ceil((lower - tile_upper) / tile_height)
    depth = samples[0][0]
    plain = tiles <= _PLAIN_TILES and (right - left) * (lower - upper) * channels <= _PLAIN_SAMPLES
    plain = plain and right < 2**16 and lower < 2**16 and _plain_jpeg2000(data)
    return Codestream(
        lower - upper, right - left, channels, (depth & 0x7F) + 1, bool(depth & 0x80), "JPEG 2000", 1, plain, data
    )


def _plain_jpeg2000(data: bytes) -> bool:
    """Whether no header asks for more than a writer of radiographs does.

    Small precincts, many layers or bit planes let a few bytes keep a decoder busy for minutes.
    """
    (length,) = struct.unpack_from(">H", data, 4)
    place, main = 4 + length, True
    for _ in range(MAX_SEGMENTS):
        if place >= len(data) - 2:
            return True
        (marker,) = struct.unpack_from(">H", data, place)
        if marker == 0xFFD9:
            return True
        (length,) = struct.unpack_from(">H", data, place + 2)
        content = data[place + 4 : place + 2 + length]
        if marker == _SOT:
            (size,) = struct.unpack_from(">I", content, 2)
            after = place + size if size else len(data)
            main = False
            head = place + 2 + length
            while struct.unpack_from(">H", data, head) != (_SOD,):
                kind, length = struct.unpack_from(">2H", data, head)
                if kind not in {_COM, _PLT} or length < 2:
                    return False
                head += 2 + length
            if after < head:
                return False
            place = after
            continue
        if not main or length < 2 or not _plain_segment(marker, content):
            return False
        place += 2 + length
    return False


def _plain_segment(marker: int, content: bytes) -> bool:
    """Whether a segment of the main header is one that writers of radiographs make (A.6.1, A.6.4)."""
    if marker == _COD:
        style, _, layers, _, levels, block_width, block_height, block_style, _ = struct.unpack_from(">BBHB5B", content)
        precincts = content[10:] if style & 1 else b""
        blocks = block_width <= 4 and block_height <= 4 and block_width + block_height >= 4  # of 16 x 16 at least
        wide = all(size & 15 >= 5 and size >> 4 >= 5 for size in precincts)
        return layers <= _PLAIN_LAYERS and levels <= _PLAIN_LEVELS and blocks and not block_style & 0x40 and wide
    if marker == _QCD:
        guard, step = content[0] >> 5, 1 if content[0] & 31 == 0 else 2
        return all(guard + (exponent >> 3) - 1 <= _PLAIN_PLANES for exponent in content[1::step])
    return marker in {_COM, _TLM}
