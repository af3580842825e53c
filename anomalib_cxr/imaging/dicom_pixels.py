"""Stored pixel values of a DICOM image (PS3.3 C.7.6.3): what its cells hold, after the header has been compared."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anomalib_cxr.imaging.codestream import Codestream, read_codestream
from anomalib_cxr.imaging.confined import need_limits

if TYPE_CHECKING:
    from pydicom import Dataset

_CODESTREAM_BYTES = 2**25  # a JPEG 2000 decoder takes about 0.15 s a megabyte


def stored_pixels(dataset: "Dataset") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Decode the pixels of a single frame.

    Args:
        dataset: Elements whose header is checked: one frame of a size that is read, a known photometric interpretation.

    Returns:
        Cells as they lie in the file and the values stored in them, which differ where BitsStored is less than
        BitsAllocated: (Rows, Columns), or (Rows, Columns, 3) for colour, which comes as RGB.

    Raises:
        ValueError: If what the pixels say of themselves contradicts the header; decoders raise other errors too.
    """
    syntax = _transfer_syntax(dataset)
    colour = dataset.SamplesPerPixel != 1
    cells, precision = _decode(dataset, syntax, colour)
    # pydicom believes the length of the pixel data where the header states fewer frames.
    if cells.shape != ((dataset.Rows, dataset.Columns, 3) if colour else (dataset.Rows, dataset.Columns)):
        msg = f"its pixels are an array of {cells.shape} where its header states {dataset.Rows} x {dataset.Columns}"
        raise ValueError(msg)
    if cells.dtype.kind == "f":
        return cells, cells
    depth = integer(dataset, "BitsStored")
    if precision is not None and precision > depth:
        _check_fit(cells, depth, precision)
        return cells, cells
    if not colour:
        return cells, _place(cells, depth, depth - 1 if precision else integer(dataset, "HighBit", depth - 1))
    if integer(dataset, "HighBit", depth - 1) != depth - 1:
        msg = f"its HighBit is {dataset.HighBit} where colour of {depth} bits needs {depth - 1}"
        raise ValueError(msg)
    return cells, cells


def _decode(dataset: "Dataset", syntax: Any, colour: bool) -> tuple[npt.NDArray[Any], int | None]:
    """Cells, and the precision of their codestream where they have one."""
    from pydicom import encaps, pixels, uid

    if not syntax.is_encapsulated:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            msg = f"its pixels are encapsulated, which its transfer syntax {syntax.name} does not allow"
            raise ValueError(msg)
        options: dict[str, Any] = {} if colour else {"correct_unused_bits": False}
        return pixels.pixel_array(dataset, **options), None
    frame = _only_frame(dataset)
    if syntax == uid.RLELossless:
        cells = _decode_rle(frame, dataset)
        if dataset.PhotometricInterpretation.startswith("YBR"):
            cells = pixels.convert_color_space(cells, "YBR_FULL", "RGB")
        return cells, None
    codestream = read_codestream(frame)
    _compare(codestream, dataset, syntax)
    if not codestream.plain or (codestream.family == "JPEG 2000" and len(codestream.data) > _CODESTREAM_BYTES):
        need_limits()
    # What was checked, and nothing else, reaches the decoder: no boxes, no second frame, no table of offsets.
    dataset.PixelData = encaps.encapsulate([codestream.data], has_bot=False)
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            delattr(dataset, keyword)
    return pixels.pixel_array(dataset), codestream.precision


def _transfer_syntax(dataset: "Dataset") -> Any:
    """Transfer syntax, one of those whose pixels are checked.

    A file without meta information has the byte order that pydicom parsed it by; the pixels need no more.
    """
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        _, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    syntax = dataset.file_meta.TransferSyntaxUID
    native = {uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian}
    native.add(uid.DeflatedExplicitVRLittleEndian)
    families = (uid.JPEGTransferSyntaxes, uid.JPEGLSTransferSyntaxes, uid.JPEG2000TransferSyntaxes)
    if syntax not in native | {uid.RLELossless, *(known for family in families for known in family)}:
        msg = f"its transfer syntax {syntax} ({syntax.name}) is not one whose pixels are read"
        raise ValueError(msg)
    return syntax


def _only_frame(dataset: "Dataset") -> bytes:
    """The one encapsulated frame, put together from its fragments."""
    from pydicom import encaps

    if "PixelData" not in dataset or not dataset["PixelData"].is_undefined_length:
        msg = f"its pixels are not encapsulated, as its transfer syntax {dataset.file_meta.TransferSyntaxUID.name} asks"
        raise ValueError(msg)
    # Counted by the fragments: a million of empty ones would keep the parser busy.
    if dataset.PixelData.count(b"\xfe\xff\x00\xe0") > 100_000:
        msg = "its pixels come in more than 100000 fragments"
        raise ValueError(msg)
    frames = list(encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    if len(frames) != 1:
        msg = f"it holds {len(frames)} compressed frames, and a radiograph is one"
        raise ValueError(msg)
    return frames[0]


def _compare(codestream: Codestream, dataset: "Dataset", syntax: Any) -> None:
    """Refuse compressed pixels of another size, kind or depth than the header's.

    Fewer bits than stated are refused, because nothing tells whether the picture was cut to them or never needed more;
    more bits are right where the pixels fit those stated, which is seen when they are decoded.
    """
    from pydicom import uid

    stated = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    if codestream.size != stated:
        msg = f"its compressed pixels are {codestream.size} (rows, columns, channels) where its header states {stated}"
        raise ValueError(msg)
    family = "JPEG-LS" if syntax in uid.JPEGLSTransferSyntaxes else "JPEG"
    if syntax in uid.JPEG2000TransferSyntaxes:
        family = "JPEG 2000"
    if codestream.family != family:
        msg = f"its compressed pixels are {codestream.family} where its transfer syntax is {syntax.name}"
        raise ValueError(msg)
    depth, allocated = integer(dataset, "BitsStored"), integer(dataset, "BitsAllocated")
    if not depth <= codestream.precision <= allocated:
        msg = f"its compressed pixels have {codestream.precision} bits where its header states {depth} of {allocated}"
        raise ValueError(msg)
    if codestream.signed and not integer(dataset, "PixelRepresentation"):
        msg = "its compressed pixels are signed where its header states unsigned"
        raise ValueError(msg)


def _decode_rle(frame: bytes, dataset: "Dataset") -> npt.NDArray[Any]:
    """RLE Lossless (PS3.5 annex G): one segment a byte of the cell, high byte first, each packed as PackBits.

    Pillow's decoder, because pydicom's goes run by run in Python: minutes for a large film of short runs.
    """
    rows, columns, channels = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    width = integer(dataset, "BitsAllocated") // 8
    count, *starts = np.frombuffer(frame[:64].ljust(64, b"\0"), "<u4").tolist()
    if width not in {1, 2, 4} or count != channels * width:
        msg = f"its RLE pixels have {count} segments where its header states {channels * width}"
        raise ValueError(msg)
    ends = [*starts[1:count], len(frame)]
    planes = np.empty((rows, columns, channels, width), np.uint8)
    for index, (start, end) in enumerate(zip(starts[:count], ends, strict=True)):
        if not 64 <= start < end <= len(frame):
            msg = f"its RLE segment {index + 1} lies at byte {start} to {end} of {len(frame)}"
            raise ValueError(msg)
        # One line of all rows: some writers let a run go over the end of a row.
        try:
            line = Image.frombytes("L", (rows * columns, 1), frame[start:end], "packbits", "L")
        except ValueError as error:
            msg = f"its RLE segment {index + 1} does not hold {rows} x {columns} bytes"
            raise ValueError(msg) from error
        planes[:, :, index // width, width - 1 - index % width] = np.asarray(line).reshape(rows, columns)
    sign = "iu"[integer(dataset, "PixelRepresentation") == 0]
    cells = planes.view(f"<{sign}{width}")[..., 0]
    return cells[..., 0] if channels == 1 else cells


def _place(cells: npt.NDArray[Any], depth: int, high: int) -> npt.NDArray[Any]:
    """Values out of cells: ``depth`` bits up to bit ``high``, which is the sign of signed ones (PS3.5, 8.1.1).

    Bits above them are no part of the value. HighBit is BitsStored - 1 (PS3.3 table C.7-11c); a file of the time when
    it could be another is read by it where the bits below are empty, which shows that it means what it says.
    """
    allocated = 8 * cells.dtype.itemsize
    below = high + 1 - depth
    if below < 0 or high >= allocated:
        msg = f"its HighBit {high} leaves no room for {depth} bits in {allocated}"
        raise ValueError(msg)
    if below and (cells & ((1 << below) - 1)).any():
        msg = f"its HighBit is {high} where {depth} stored bits need {depth - 1}, and the bits below are not empty"
        raise ValueError(msg)
    if depth == allocated:
        return cells
    values = cells << (allocated - 1 - high)
    values >>= allocated - depth
    return values


def _check_fit(cells: npt.NDArray[Any], depth: int, precision: int) -> None:
    """Refuse pixels of a codestream of more bits than stored that do not fit those."""
    low = -(1 << (depth - 1)) if cells.dtype.kind == "i" else 0
    high = low + (1 << depth) - 1
    if cells.min() < low or cells.max() > high:
        msg = f"its compressed pixels use more of their {precision} bits than the {depth} that its header states"
        raise ValueError(msg)


def integer(dataset: "Dataset", keyword: str, default: int | None = None) -> int:
    """Value of an element that is one whole number, the default where it is absent or empty."""
    value = dataset.get(keyword)
    if value in (None, "") and default is not None:
        return default
    if not isinstance(value, int):
        msg = f"its header states no {keyword}" if value in (None, "") else f"its {keyword} is {value}"
        raise ValueError(msg)
    return int(value)
