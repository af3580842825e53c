"""DICOM files parsed in bounded time and memory: the elements, not yet the pixels."""

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE = 128
MAGIC = b"DICM"

MAX_FILE = 2**29
"""Largest file in bytes: 8192 x 8192 pixels of 64 bits."""

MAX_INFLATED = 2**28 + 2**20
"""Largest content of a deflated file in bytes: 8192 x 8192 pixels of 32 bits and a header."""

MAX_READS = 300_000
"""Pieces that the parser may ask for, about three an element. Films have a few hundred elements."""

MAX_SEQUENCE = 2**22
"""Largest sequence that is opened, in bytes: some thirty lookup tables."""

MAX_ELEMENT = 2**17
"""Largest other element of the image groups but the pixels, in bytes: a lookup table of 65,536 entries."""

_DEFLATED, _EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1"
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_IMAGE_GROUPS = {0x0028, 0x2050}
_SEQUENCES = {0x00283000, 0x00283010, 0x20500010}  # lookup tables, which implicit VR does not name sequences


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes (132 or more) is a DICOM file (PS3.10, 7.1)."""
    return head[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC


def read_dataset(path: Path) -> "Dataset":
    """Parse a DICOM file, with or without the preamble.

    Args:
        path: File to read.

    Returns:
        Its elements. Those of the image groups are small enough to be looked at.

    Raises:
        ValueError: If the file, what a deflated file holds, or its header is larger than any radiograph's; pydicom
            raises other errors too.
    """
    from pydicom import dcmread

    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        if size > MAX_FILE:
            msg = f"it has {size} bytes, more than the {MAX_FILE} that are read"
            raise ValueError(msg)
        file.seek(0)
        dataset = dcmread(Counted(_inflate(file)), force=True)
    check_elements(dataset)
    return dataset


def check_elements(dataset: "Dataset") -> None:
    """Refuse elements of the image groups that are larger than any radiograph's, before their values are made.

    Raises:
        ValueError: If there is one.
    """
    for tag in dataset.keys():  # noqa: SIM118
        element = dataset.get_item(tag)
        if tag.group not in _IMAGE_GROUPS or not element.is_raw or element.value is None:
            continue
        if len(element.value) > (MAX_SEQUENCE if element.VR == "SQ" or tag in _SEQUENCES else MAX_ELEMENT):
            msg = f"its element {tag} has {len(element.value)} bytes, more than any radiograph's"
            raise ValueError(msg)


class Counted:
    """A file whose reads are counted: each costs Python work, and a small file can ask for millions."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, MAX_READS
        self.seek, self.tell, self.close = file.seek, file.tell, file.close
        self.name = getattr(file, "name", None)

    def read(self, size: int = -1) -> bytes:
        """Read, unless it is once too often."""
        self._left -= 1
        if self._left < 0:
            msg = "its header has more elements than any radiograph's"
            raise ValueError(msg)
        return self._file.read(size)


def _inflate(file: BinaryIO) -> BinaryIO:
    """The file, or the content of a deflated one (PS3.5, A.5) as if it had been written plain."""
    found = _find_syntax(file)
    start = file.tell()
    file.seek(0)
    if found is None:
        if _DEFLATED in file.read(2**16):
            msg = "it says that it is deflated where it cannot be read"
            raise ValueError(msg)
        file.seek(0)
        return file
    place, length = found
    file.seek(place)
    syntax = file.read(length)
    file.seek(0)
    if syntax.rstrip(b"\0 ") != _DEFLATED:
        return file
    plain = io.BytesIO()
    plain.write(file.read(place) + _EXPLICIT.ljust(length, b"\0"))
    file.seek(length, io.SEEK_CUR)
    plain.write(file.read(start - place - length))
    # As pydicom does, whatever follows the end of the stream (a byte of padding) is not looked at.
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    left = MAX_INFLATED
    while not decompressor.eof:
        piece = decompressor.unconsumed_tail or file.read(2**20)
        content = decompressor.decompress(piece, 2**24)
        if not piece and not content:
            msg = "its deflated content is truncated"
            raise ValueError(msg)
        left -= len(content)
        if left < 0:
            msg = f"it inflates to more than the {MAX_INFLATED} bytes that are read"
            raise ValueError(msg)
        plain.write(content)
    plain.seek(0)
    return plain


def _find_syntax(file: BinaryIO) -> tuple[int, int] | None:
    """Place and length of the transfer syntax; leaves the file behind the meta information (PS3.10, 7.1)."""
    if not is_dicom(file.read(PREAMBLE + len(MAGIC))):
        file.seek(0)
    found = None
    for _ in range(1000):
        start = file.tell()
        head = file.read(8)
        if len(head) < 8 or head[:2] != b"\2\0":
            file.seek(start)
            return found
        length = struct.unpack_from("<H", head, 6)[0]
        if head[4:6] in _LONG_VRS:
            (length,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
        if head[2:4] == b"\x10\0":
            found = file.tell(), length
        file.seek(length, io.SEEK_CUR)
    msg = "its meta information has more than 1000 elements"
    raise ValueError(msg)
