"""DICOM files as brightness in [0, 1]: the greyscale pipeline of PS3.4 annex N, with pydicom as the decoder."""

from collections.abc import Callable, MutableSequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomalib_cxr.imaging.dicom_dataset import check_elements, is_dicom, read_dataset
from anomalib_cxr.imaging.dicom_pixels import integer, stored_pixels
from anomalib_cxr.imaging.pixels import check_float, check_size, scale, strips, to_grey

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["is_dicom", "read_dicom", "window"]

# Samples a pixel of each photometric interpretation that is read (PS3.3 C.7.6.3.1.2).
_SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
}

Brightness = Callable[[npt.NDArray[Any]], npt.NDArray[np.floating]]
"""Brightness of stored values, pixel by pixel."""


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
        from pydicom import pixels
    except ImportError as error:
        msg = 'DICOM needs pydicom: pip install "anomalib-cxr[dicom]"'
        raise ImportError(msg) from error

    dataset = read_dataset(path)
    _check_header(dataset, bits)
    cells, stored = stored_pixels(dataset)
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        colour = pixels.apply_color_lut(stored, dataset)
        film = scale(to_grey(colour), 8 * colour.dtype.itemsize)
    elif stored.ndim == 3:
        film = scale(to_grey(stored), dataset.BitsStored)
    else:
        film = _grey_film(cells, stored, dataset)
    if film.min() == film.max() and stored.min() != stored.max():
        msg = f"its stored pixels vary and all come out as {film.min():g}: its window, table or padding is of others"
        raise ValueError(msg)
    return film


def _grey_film(cells: npt.NDArray[Any], stored: npt.NDArray[Any], dataset: "Dataset") -> npt.NDArray[np.float32]:
    """Brightness of grey pixels, in strips: the steps between are in float64 and would need eight films at once."""
    lowest, highest = stored.min(), stored.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        msg = "its float pixels are not all finite"
        raise ValueError(msg)
    brightness = _pipeline(stored.dtype, float(lowest), float(highest), dataset)
    is_padding = _padding(dataset, stored.dtype)
    film = np.empty(stored.shape, np.float32)
    for rows in strips(stored.shape):
        film[rows] = brightness(stored[rows])
        if is_padding is not None:
            film[rows][is_padding(cells[rows], stored[rows])] = 0
    return film


def _check_header(dataset: "Dataset", bits: int | None) -> None:
    """Refuse by the header alone, before pixels are decoded; code strings of the wrong case are put right."""
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
    check_size(integer(dataset, "Rows"), integer(dataset, "Columns"))
    if bits is not None and bits != dataset.get("BitsStored"):
        msg = f"bits={bits} contradicts its BitsStored {dataset.get('BitsStored')}"
        raise ValueError(msg)
    photometric = _code(dataset, "PhotometricInterpretation")
    if photometric not in _SAMPLES:
        msg = f"its photometric interpretation {photometric} is not one that is read"
        raise ValueError(msg)
    dataset.PhotometricInterpretation = photometric
    samples = integer(dataset, "SamplesPerPixel")
    if samples != _SAMPLES[photometric]:
        msg = f"it has {samples} samples a pixel where {photometric} has {_SAMPLES[photometric]}"
        raise ValueError(msg)
    if photometric in {"YBR_ICT", "YBR_RCT"} and not _is_jpeg2000(dataset):
        msg = f"its photometric interpretation {photometric} is one of JPEG 2000, which its transfer syntax is not"
        raise ValueError(msg)
    if samples == 3 and integer(dataset, "PixelRepresentation") != 0:
        msg = "its colour is signed"
        raise ValueError(msg)


def _is_jpeg2000(dataset: "Dataset") -> bool:
    from pydicom import uid

    return getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") in uid.JPEG2000TransferSyntaxes


def _pipeline(dtype: np.dtype[Any], lowest: float, highest: float, dataset: "Dataset") -> Brightness:
    """Modality LUT; then VOI LUT, window or, without either, the whole range that the header allows; polarity.

    Args:
        dtype: Type of the stored values.
        lowest: Lowest of them.
        highest: Highest of them.
        dataset: Elements.
    """
    modality, ends = _modality(dtype, lowest, highest, dataset)
    voi = _voi(modality, ends, lowest, highest, dataset)
    shape = _code(dataset, "PresentationLUTShape")
    if shape not in {"", "IDENTITY", "INVERSE"}:
        msg = f"its presentation LUT shape {shape} is not known"
        raise ValueError(msg)
    # For a radiograph the two say the same thing twice (PS3.3 C.8.11.3), so this inverts once.
    if dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE":
        return lambda stored: 1 - voi(modality(stored))
    return lambda stored: voi(modality(stored))


def _voi(
    modality: Brightness, ends: tuple[float, float] | None, lowest: float, highest: float, dataset: "Dataset"
) -> Brightness:
    """From modality values to brightness (PS3.3 C.11.2)."""
    if dataset.get("VOILUTSequence"):
        # The modality values of a table need not rise with the stored ones.
        between = ends if dataset.get("ModalityLUTSequence") else _ordered(modality, lowest, highest)
        table, first, depth = _lookup_table(dataset.VOILUTSequence[0], dataset, between or (lowest, highest))
        white = 2**depth - 1
        return lambda values: _look_up(values, table, first) / white
    if _has(dataset, "WindowCenter") and _has(dataset, "WindowWidth"):
        center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
        function = _code(dataset, "VOILUTFunction") or "LINEAR"
        return lambda values: window(values, center, width, function)
    if ends is None:
        return check_float
    low, high = ends
    found = _ordered(modality, lowest, highest) if not dataset.get("ModalityLUTSequence") else ends
    if found[0] < low or found[1] > high:
        msg = f"its values run from {found[0]:g} to {found[1]:g}, outside the {low:g} to {high:g} of its header"
        raise ValueError(msg)
    return lambda values: (values - low) / (high - low)


def _ordered(modality: Brightness, lowest: float, highest: float) -> tuple[float, float]:
    """Lowest and highest modality value of a rescale."""
    low, high = sorted(modality(np.array([lowest, highest])).tolist())
    return low, high


def _modality(
    dtype: np.dtype[Any], lowest: float, highest: float, dataset: "Dataset"
) -> tuple[Brightness, tuple[float, float] | None]:
    """Rescale, or look up in the modality LUT (PS3.3 C.11.1).

    Returns:
        The values of stored pixels, and the lowest and highest that the header allows; None for float pixels.
    """
    slope, intercept = _number(dataset, "RescaleSlope", 1), _number(dataset, "RescaleIntercept", 0)
    if dataset.get("ModalityLUTSequence"):
        if (slope, intercept) != (1, 0):
            msg = "it states both a modality lookup table and a rescale, of which the standard allows one"
            raise ValueError(msg)
        table, first, depth = _lookup_table(dataset.ModalityLUTSequence[0], dataset, (lowest, highest))
        return lambda stored: _look_up(stored, table, first), (0.0, 2.0**depth - 1)

    def rescale(stored: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return stored.astype(np.float64) * slope + intercept

    if dtype.kind == "f":
        return rescale, None
    depth = integer(dataset, "BitsStored")
    offset = 2 ** (depth - 1) if dataset.PixelRepresentation == 1 else 0
    low, high = sorted((-offset * slope + intercept, (2**depth - 1 - offset) * slope + intercept))
    if slope == 0:
        msg = "its rescale slope is 0"
        raise ValueError(msg)
    if not low < high or not np.isfinite(high - low):
        msg = f"its rescale (slope {slope:g}, intercept {intercept:g}) leaves no values that can be told apart"
        raise ValueError(msg)
    return rescale, (low, high)


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


def _look_up(values: npt.NDArray[Any], table: npt.NDArray[np.integer], first: int) -> npt.NDArray[np.float64]:
    """Map values through a table whose first entry stands for ``first``; beyond its ends, the end entries."""
    # Own, because pydicom 3.0.2 casts the index to the width of the table's entries: it wraps in an 8-bit table of
    # more than 256 entries.
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    return table[index].astype(np.float64)


def _lookup_table(
    item: "Dataset", dataset: "Dataset", between: tuple[float, float]
) -> tuple[npt.NDArray[np.integer], int, int]:
    """Entries, first mapped value and bits an entry of a modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1).

    Length and entries are unsigned whatever their VR. The first mapped value has the sign of what is looked up; one
    that was written in the VR of the other sign differs by 65536, and is put right where the table as it is written
    would map all pixels to one of its ends and the other reading would not.

    Args:
        item: Item of the sequence.
        dataset: Elements around it.
        between: Lowest and highest value that is looked up.
    """
    check_elements(item)
    length, first, depth = (int(number) for number in item.LUTDescriptor)
    length = (length & 0xFFFF) or 2**16
    data = item.LUTData
    if isinstance(data, bytes):
        _, little = dataset.original_encoding
        packed = len(data) in {length, length + length % 2} and depth <= 8
        data = np.frombuffer(data, np.uint8 if packed else np.dtype("<u2" if little else ">u2"))
    table = np.asarray(data, dtype=np.int64).reshape(-1)[:length] & 0xFFFF
    if len(table) < length or length < 2 or not 8 <= depth <= 16:
        msg = f"its lookup table has {len(table)} entries where {length} of {depth} bits are stated"
        raise ValueError(msg)
    if table.max() >= 1 << depth:
        msg = f"its lookup table holds {table.max()}, more than its {depth} bits allow"
        raise ValueError(msg)
    other = first - 2**16 if first >= 2**15 else first + 2**16
    if (first >= 2**15 or first < 0) and not _meets(first, length, between) and _meets(other, length, between):
        first = other
    return table, first, depth


def _meets(first: int, length: int, between: tuple[float, float]) -> bool:
    """Whether a table tells some of the values between two numbers apart."""
    return between[0] < first + length - 1 and between[1] > first


def _padding(
    dataset: "Dataset", dtype: np.dtype[Any]
) -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.bool_]] | None:
    """What tells pixels that are no part of the image (PS3.3 C.7.5.1.1.2): they come out black whatever their value.

    Returns:
        A function of cells and stored values, or None without padding.
    """
    name = {"f4": "Float", "f8": "DoubleFloat"}.get(dtype.str[1:], "")
    value = f"{name}PixelPaddingValue"
    if not _has(dataset, value):
        return None
    limit = f"{name}PixelPaddingRangeLimit"
    ends = [_number(dataset, value), _number(dataset, limit) if _has(dataset, limit) else _number(dataset, value)]
    if name:
        low, high = sorted(ends)
        return lambda _, stored: (stored >= low) & (stored <= high)
    depth, signed = integer(dataset, "BitsStored"), dtype.kind == "i"
    low, high = sorted(_in_sign(int(end), depth, 8 * dtype.itemsize, signed) for end in ends)
    offset = 2 ** (depth - 1) if signed else 0
    # A value that BitsStored cannot hold can only be meant as it lies in the whole cell.
    if low == high and not -offset <= low < 2**depth - offset:
        return lambda cells, _: cells == low
    return lambda _, stored: (stored >= low) & (stored <= high)


def _in_sign(value: int, depth: int, allocated: int, signed: bool) -> int:
    """A value of 16 bits that was written in the VR of the other sign, in that of the pixels."""
    if not signed:
        return value & ((1 << max(16, allocated)) - 1) if allocated >= 16 else value & 0xFF if value < 0 else value
    if 1 << (depth - 1) <= value < 1 << depth:
        return value - (1 << depth)
    return value - 2**16 if 2**15 <= value < 2**16 and depth <= 16 else value


def _has(dataset: "Dataset", keyword: str) -> bool:
    """Whether an element is there and not empty."""
    return dataset.get(keyword) not in (None, "", [])


def _code(dataset: "Dataset", keyword: str) -> str:
    """Value of a code string, which the standard knows in capitals only; empty where it is absent."""
    value = dataset.get(keyword) or ""
    return str(value).strip().upper()


def _number(dataset: "Dataset", keyword: str, default: float | None = None) -> float:
    """Value of a numeric element, the first of several; the default where it is absent or empty.

    Raises:
        ValueError: If it is not finite.
    """
    value: Any = dataset.get(keyword) if _has(dataset, keyword) else default
    number = float(value[0] if isinstance(value, MutableSequence) else value)
    if not np.isfinite(number):
        msg = f"its {keyword} is {number}"
        raise ValueError(msg)
    return number
