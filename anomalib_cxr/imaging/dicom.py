"""DICOM files as brightness in [0, 1]: the greyscale pipeline of PS3.4 annex N, with pydicom as the decoder."""

from collections.abc import MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging.codestream import codestream_size
from anomalib_cxr.imaging.pixels import check_float, check_size, scale, to_grey

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE = 128
MAGIC = b"DICM"


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes (132 or more) is a DICOM file (PS3.10, 7.1)."""
    return head[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC


def read_dicom(path: Path, bits: int | None = None) -> npt.NDArray[np.float32]:
    """Decode one DICOM image; see :func:`read_radiograph` for what the pixels mean.

    Args:
        path: File to read, with or without the preamble.
        bits: Stored depth the caller expects, or None; the file's BitsStored must agree.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ImportError: If pydicom is not installed.
        ValueError: If the file is refused, with the reason; pydicom and its decoders raise other errors too.
    """
    try:
        from pydicom import dcmread, pixels
    except ImportError as error:
        msg = 'DICOM needs pydicom: pip install "anomalib-cxr[dicom]"'
        raise ImportError(msg) from error

    dataset = dcmread(path, force=True)
    _check_header(dataset, bits)
    _name_transfer_syntax(dataset)
    _check_codestream(dataset)
    stored = pixels.pixel_array(dataset)
    # pydicom believes the length of the pixel data where the header states fewer frames.
    if stored.shape not in {(dataset.Rows, dataset.Columns), (dataset.Rows, dataset.Columns, 3)}:
        msg = f"its pixels are an array of {stored.shape} where its header states {dataset.Rows} x {dataset.Columns}"
        raise ValueError(msg)
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        colour = pixels.apply_color_lut(stored, dataset)
        return scale(to_grey(colour), 8 * colour.dtype.itemsize)
    if stored.ndim == 3:
        return scale(to_grey(stored), dataset.BitsStored)

    brightness = _brightness(stored, dataset)
    # For a radiograph the two say the same thing twice (PS3.3 C.8.11.3), so this inverts once.
    if photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        brightness = 1 - brightness
    brightness[_is_padding(stored, dataset)] = 0
    return brightness.astype(np.float32)


def _check_header(dataset: "Dataset", bits: int | None) -> None:
    """Refuse by the header alone, before pixels are decoded."""
    if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        msg = f"it holds no pixels (modality {dataset.get('Modality', 'unknown')})"
        raise ValueError(msg)
    for keyword in ("Rows", "Columns", "PhotometricInterpretation"):
        if not dataset.get(keyword):
            msg = f"its header states no {keyword}"
            raise ValueError(msg)
    frames = int(_number(dataset, "NumberOfFrames", 1))
    if frames > 1:
        msg = f"it holds {frames} frames, and a radiograph is one"
        raise ValueError(msg)
    check_size(int(dataset.Rows), int(dataset.Columns))
    if bits is not None and bits != dataset.get("BitsStored"):
        msg = f"bits={bits} contradicts its BitsStored {dataset.get('BitsStored')}"
        raise ValueError(msg)


def _name_transfer_syntax(dataset: "Dataset") -> None:
    """Give a file without meta information the byte order that pydicom parsed it by; the pixels need no more."""
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        _, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _check_codestream(dataset: "Dataset") -> None:
    """Refuse compressed pixels of another size than the header's: a decoder would allocate whatever they claim."""
    from pydicom import encaps, uid

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes):
        return
    stated = (dataset.Rows, dataset.Columns, dataset.get("SamplesPerPixel"))
    found = codestream_size(encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
    if found != stated:
        msg = f"its compressed pixels are {found} (rows, columns, channels) where its header states {stated}"
        raise ValueError(msg)


def _brightness(stored: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.floating]:
    """Modality LUT, then VOI LUT, window or, without either, the whole range that the header allows."""
    values, low, high = _modality(stored, dataset)
    if dataset.get("VOILUTSequence"):
        return _voi_lut(values, dataset)
    if _has(dataset, "WindowCenter") and _has(dataset, "WindowWidth"):
        center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
        return window(values, center, width, dataset.get("VOILUTFunction") or "LINEAR")
    if low is None or high is None:
        return check_float(values)
    if low == high:
        msg = "its rescale slope is 0"
        raise ValueError(msg)
    if values.min() < low or values.max() > high:
        msg = f"its values run from {values.min():g} to {values.max():g}, outside the {low:g} to {high:g} of its header"
        raise ValueError(msg)
    return (values - low) / (high - low)


def _modality(
    stored: npt.NDArray[Any], dataset: "Dataset"
) -> tuple[npt.NDArray[np.float64], float | None, float | None]:
    """Rescale, or look up in the modality LUT (PS3.3 C.11.1).

    Returns:
        The values, and the lowest and highest that the header allows; None and None for float pixels.
    """
    if dataset.get("ModalityLUTSequence"):
        table, first, depth = _lookup_table(dataset.ModalityLUTSequence[0], dataset)
        return _look_up(stored, table, first), 0.0, 2.0**depth - 1
    slope, intercept = _number(dataset, "RescaleSlope", 1), _number(dataset, "RescaleIntercept", 0)
    values = stored.astype(np.float64) * slope + intercept
    if stored.dtype.kind == "f":
        return values, None, None
    depth = int(dataset.BitsStored)
    offset = 2 ** (depth - 1) if dataset.PixelRepresentation == 1 else 0
    ends = (-offset * slope + intercept, (2**depth - 1 - offset) * slope + intercept)
    return values, min(ends), max(ends)


def window(
    values: npt.NDArray[np.floating], center: float, width: float, function: str = "LINEAR"
) -> npt.NDArray[np.float64]:
    """Window values to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Output of the modality LUT, any shape.
        center: Window centre, in the unit of the values.
        width: Window width, in the same unit: at least 1 for LINEAR (1 is a threshold), else more than 0.
        function: LINEAR, LINEAR_EXACT or SIGMOID.

    Returns:
        Brightness in [0, 1], the shape of ``values``.

    Raises:
        ValueError: If the standard does not allow the width or does not know the function.
    """
    if width <= 0 or (function == "LINEAR" and width < 1) or not np.isfinite(center + width):
        msg = f"its window (centre {center:g}, width {width:g}) is none"
        raise ValueError(msg)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
        if width == 0:
            return (values > center).astype(np.float64)
    if function in {"LINEAR", "LINEAR_EXACT"}:
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        # The logistic function by tanh, which cannot overflow.
        return 0.5 + 0.5 * np.tanh(2 * (values - center) / width)
    msg = f"its VOI LUT function {function} is not known"
    raise ValueError(msg)


def _voi_lut(values: npt.NDArray[np.float64], dataset: "Dataset") -> npt.NDArray[np.float64]:
    """Look up in the first VOI LUT (PS3.3 C.11.2.1.1)."""
    table, first, depth = _lookup_table(dataset.VOILUTSequence[0], dataset)
    white = 2**depth - 1
    if table.max() > white:
        msg = f"its VOI LUT holds {table.max()}, more than its {depth} bits allow"
        raise ValueError(msg)
    return _look_up(values, table, first) / white


def _look_up(values: npt.NDArray[Any], table: npt.NDArray[np.integer], first: int) -> npt.NDArray[np.float64]:
    """Map values through a table whose first entry stands for ``first``; beyond its ends, the end entries."""
    # Own, because pydicom 3.0.2 casts the index to the width of the table's entries: it wraps in an 8-bit table of
    # more than 256 entries.
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[index].astype(np.float64)


def _lookup_table(item: "Dataset", dataset: "Dataset") -> tuple[npt.NDArray[np.integer], int, int]:
    """Entries, first mapped value and bits an entry of a modality or VOI LUT."""
    length, first, depth = (int(number) for number in item.LUTDescriptor)
    length = length or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        _, little = dataset.original_encoding
        packed = len(data) in {length, length + length % 2} and depth <= 8
        data = np.frombuffer(data, np.uint8 if packed else np.dtype("<u2" if little else ">u2"))
    table = np.asarray(data, dtype=np.int64).reshape(-1)[:length]
    if len(table) < length or length < 2 or not 8 <= depth <= 16:
        msg = f"its lookup table has {len(table)} entries where {length} of {depth} bits are stated"
        raise ValueError(msg)
    return table, first, depth


def _is_padding(stored: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.bool_]:
    """Pixels that are no part of the image (PS3.3 C.7.5.1.1.2): they come out black whatever their value."""
    if not _has(dataset, "PixelPaddingValue"):
        return np.zeros(stored.shape, dtype=bool)
    value = int(dataset.PixelPaddingValue)
    limit = int(_number(dataset, "PixelPaddingRangeLimit", value))
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _has(dataset: "Dataset", keyword: str) -> bool:
    """Whether an element is there and not empty."""
    return dataset.get(keyword) not in (None, "", [])


def _number(dataset: "Dataset", keyword: str, default: float | None = None) -> float:
    """Value of a numeric element, the first of several; the default where it is absent or empty."""
    value: Any = dataset.get(keyword) if _has(dataset, keyword) else default
    return float(value[0] if isinstance(value, MutableSequence) else value)
