"""A film as it arrives: what its header says, and which pixels it holds, without decoding them."""

import io
import re
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from anomalib_cxr.imaging.dicom_dataset import Counted, check_elements

if TYPE_CHECKING:
    from pydicom import Dataset

#: What says how the pixels are to be understood; films that differ in it are not the same.
_GEOMETRY = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
_PIXELS = 0x7FE00010
_IDENTIFIERS = ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID")
_UID = re.compile(
    r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*", re.ASCII
)  # PS3.5 9.1; devices write leading zeros, which do no harm


class Arriving(NamedTuple):
    """What is known of a film before it is decoded.

    Attributes:
        header: Its elements, but for the pixels.
        uid: SOP Instance UID.
        digest: SHA-256 of geometry and pixels, as they are encoded: two films with one digest are the same film, even
            if an archive has changed their header.
    """

    header: "Dataset"
    uid: str
    digest: str


def look_at(content: bytes) -> Arriving:
    """Read the header of a film.

    Args:
        content: A DICOM file.

    Returns:
        What is known of it.

    Raises:
        ValueError: If it cannot be read, or lacks an identifier; the message names no value of it.
    """
    from pydicom import dcmread

    try:
        header = dcmread(Counted(io.BytesIO(content)))
        check_elements(header)
        pixels = header.get_item(_PIXELS).value if _PIXELS in header else b""
        digest = sha256(repr([str(header.get(keyword)) for keyword in _GEOMETRY]).encode())
        uids = [str(header.get(keyword) or "") for keyword in _IDENTIFIERS]
    except Exception as error:  # pydicom raises whatever a broken file makes it stumble over
        msg = f"its data set is broken or cut short ({type(error).__name__})"
        raise ValueError(msg) from error
    digest.update(pixels or b"")
    if _PIXELS in header:
        del header[_PIXELS]
    for keyword, uid in zip(_IDENTIFIERS, uids, strict=True):
        if not _UID.fullmatch(uid):
            msg = f"its {keyword} is missing or no identifier"
            raise ValueError(msg)
    return Arriving(header, uids[0], digest.hexdigest())
