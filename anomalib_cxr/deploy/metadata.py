"""What an exported model says of itself, and the checks before any runtime opens it.

The metadata is one JSON object under the key :data:`KEY`: among the properties of an ONNX file (``metadata_props``), or
in the ``rt_info`` of an OpenVINO ``.xml``. It names the file of the weights beside it with its size and SHA-256, and
holds the SHA-256 of its own file, graph and metadata, so that a model whose two files were parted, mixed up, cut short
or changed is refused with a reason. That guards against accidents, not against intent: it is no signature. Nothing here
runs code from the files, and nothing but the standard library is needed.
"""

import json
import math
import mmap
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from anomalib_cxr import __version__
from anomalib_cxr.files import sha256_of, write_bytes

KEY = "anomalib_cxr"
#: Changes whenever a reader of the old metadata would misread the new.
FORMAT = 2
#: What the graph gives, and the inferencer takes.
OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
#: The one pre-processing that the inferencer can do itself: antialiased bilinear, to the input size.
EXACT_RESIZE = "exact_resize"
#: Of the squashing of scores at the threshold; at 4 the normal half of validation scores fills about 0.1 … 0.5.
STEEPNESS = 4.0
#: Stands in a file for the file's own SHA-256, until :func:`seal`.
UNSEALED = "0" * 64

#: What must be there for an inferencer to work, and its type.
_REQUIRED: dict[str, type] = {
    "format": int,
    "package_version": str,
    "model": str,
    "config": dict,
    "input_size": list,
    "pre_processing": str,
    "outputs": list,
    "normalisation": dict,
    "thresholds": dict,
    "decision": dict,
    "weights": dict,
    "file_sha256": str,
}
#: Numbers without which there is no decision.
_NUMBERS = {
    "normalisation": ("image_min", "image_max", "pixel_min", "pixel_max"),
    "thresholds": ("image", "pixel"),
    "decision": ("image", "pixel"),
}
_PICKLES = frozenset({".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
# ModelProto and StringStringEntryProto of the ONNX specification (onnx.proto).
_ONNX_METADATA_PROPS, _ENTRY_KEY, _ENTRY_VALUE = 14, 1, 2


class ExportedModelError(ValueError):
    """A file that cannot be used as an exported model. The message says why, and what to do."""


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read and check the metadata of an exported model, without loading the model.

    Args:
        path: ``.onnx`` or ``.xml`` file; its weights must lie beside it.

    Returns:
        ``package_version``, ``model`` (class name), ``config`` (arguments of the model), ``input_size`` (height and
        width that images are resized to), ``pre_processing`` (:data:`EXACT_RESIZE`, or what else is done), ``outputs``
        (:data:`OUTPUTS`), ``normalisation`` (ranges that scores and maps are squashed by), ``thresholds`` (raw scale),
        ``decision`` (scores and pixels above these, on the normalised scale, are abnormal: 1 − sensitivity),
        ``banks``, ``split_sha256`` (None if the datamodule knows no split), ``compression``, ``film_limits`` (which
        films may be judged by their scores, see :class:`~anomalib_cxr.anatomy.assessable.FilmLimits`; None where none
        were fixed, absent in older files), ``weights`` (file, bytes, sha256), ``file_sha256`` (of this file, with
        :data:`UNSEALED` in its place).

    Raises:
        ExportedModelError: If the file is missing, a pickle, of another origin or version, broken, changed or cut
            short, lacks a threshold, or if its weights are missing or not its own.
    """
    path = Path(path)
    if path.suffix.lower() in _PICKLES or (path.is_file() and _starts_as_pickle(path)):
        msg = (
            f"{path} is a pickle, which can run any code when it is loaded: export the checkpoint with "
            "--export_type onnx or openvino."
        )
        raise ExportedModelError(msg)
    if not path.is_file():
        msg = f"{path} is no file: give the .onnx or .xml that `anomalib export` wrote."
        raise ExportedModelError(msg)
    if path.suffix.lower() not in {".onnx", ".xml"}:
        msg = f"{path} is neither .onnx nor .xml: give the file that `anomalib export` wrote."
        raise ExportedModelError(msg)
    try:
        text = _onnx_property(path) if path.suffix.lower() == ".onnx" else _openvino_property(path)
    except (ValueError, LookupError, ElementTree.ParseError) as error:
        msg = f"{path} is broken or cut short ({error}): copy it again, or export it again."
        raise ExportedModelError(msg) from error
    if text is None:
        msg = f"{path} was not exported from a model of anomalib-cxr: it lacks our metadata."
        raise ExportedModelError(msg)
    metadata = _parse(path, text)
    _check_seal(path, metadata.get("file_sha256"))
    _check_content(path, metadata)
    _check_weights(path, metadata)
    return metadata


def describe_weights(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file of weights, as the metadata holds them.

    Args:
        path: File.

    Returns:
        ``file`` (name without folder), ``bytes`` and ``sha256``.
    """
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def seal(path: Path) -> None:
    """Put the SHA-256 of a file, graph and metadata, into the file itself.

    Args:
        path: File with :data:`UNSEALED` in its metadata, which the hash is computed with and then replaces.

    Raises:
        ValueError: If :data:`UNSEALED` is not in it exactly once.
    """
    content = path.read_bytes()
    if content.count(UNSEALED.encode()) != 1:
        msg = (
            f"{path} must hold the place of its SHA-256 exactly once, and holds it {content.count(UNSEALED.encode())}x."
        )
        raise ValueError(msg)
    write_bytes(path, content.replace(UNSEALED.encode(), sha256(content).hexdigest().encode()))


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
        made_as, version = metadata["format"], str(metadata["package_version"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        msg = f"The metadata of {path} is damaged or incomplete ({error}): export the model again."
        raise ExportedModelError(msg) from error
    if made_as != FORMAT or _series(version) != _series(__version__):
        msg = (
            f"{path} was exported by anomalib-cxr {version} (metadata format {made_as}), this is {__version__} (format "
            f"{FORMAT}): install that version, or export the model again with this one."
        )
        raise ExportedModelError(msg)
    return metadata


def _series(version: str) -> list[str]:
    """Part of a version that two packages must share: the major number and, while that is 0, the minor one."""
    parts = version.split(".")
    return parts[: 2 if parts[0] == "0" else 1]


def _check_seal(path: Path, stated: Any) -> None:
    if isinstance(stated, str) and re.fullmatch("[0-9a-f]{64}", stated):
        content = path.read_bytes()
        whole = content.replace(stated.encode(), UNSEALED.encode(), 1)
        if sha256(whole).hexdigest() == stated:
            return
    msg = f"{path} was changed since its export (its SHA-256 is another): copy it again, or export the model again."
    raise ExportedModelError(msg)


def _check_content(path: Path, metadata: dict[str, Any]) -> None:
    wrong = [key for key, kind in _REQUIRED.items() if not isinstance(metadata.get(key), kind)]
    if wrong:
        msg = f"The metadata of {path} is damaged or incomplete ({', '.join(wrong)}): export the model again."
        raise ExportedModelError(msg)
    if sorted(map(str, metadata["outputs"])) != sorted(OUTPUTS):
        msg = f"The metadata of {path} states the outputs {metadata['outputs']}, not {list(OUTPUTS)}: export it again."
        raise ExportedModelError(msg)
    unknown = [f"{key}.{name}" for key, names in _NUMBERS.items() for name in names if not _finite(metadata[key], name)]
    if unknown:
        msg = f"The metadata of {path} states no finite {', '.join(unknown)}: validate the model, and export it again."
        raise ExportedModelError(msg)
    if not all(0 <= metadata["decision"][name] <= 1 for name in _NUMBERS["decision"]):
        msg = f"The metadata of {path} decides at {metadata['decision']}: export it with sensitivities from 0 to 1."
        raise ExportedModelError(msg)


def _finite(numbers: dict[str, Any], name: str) -> bool:
    value = numbers.get(name)
    return isinstance(value, float) and math.isfinite(value)


def weights_path(path: Path, metadata: dict[str, Any]) -> Path:
    """File of the weights that belong to an exported model.

    Args:
        path: ``.onnx`` or ``.xml`` file.
        metadata: Its metadata.

    Returns:
        The file that the metadata names, in the model's own folder: only the name counts.

    Raises:
        ExportedModelError: If there is none.
    """
    name = Path(str(metadata["weights"].get("file", ""))).name
    weights = path.with_name(name) if name else path
    if weights == path or not weights.is_file():
        msg = f"{path} needs its weights beside it under the name {name or '(not stated)'}: copy both files together."
        raise ExportedModelError(msg)
    return weights


def _check_weights(path: Path, metadata: dict[str, Any]) -> None:
    stated, weights = metadata["weights"], weights_path(path, metadata)
    size = weights.stat().st_size
    if size != stated.get("bytes"):
        msg = f"{weights} has {size} bytes where {path.name} states {stated.get('bytes')}: copy both files again."
        raise ExportedModelError(msg)
    if sha256_of(weights) != stated.get("sha256"):
        msg = f"{weights} was changed, or belongs to another export than {path.name}: copy both files again."
        raise ExportedModelError(msg)


def _starts_as_pickle(path: Path) -> bool:
    """Whether the content is that of a torch file (a zip archive) or of a bare pickle (protocol 2 and later)."""
    with path.open("rb") as file:
        head = file.read(4)
    return head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"})


def _openvino_property(path: Path) -> str | None:
    root = ElementTree.parse(path).getroot()
    node = root.find(f"rt_info/{KEY}") if root.tag == "net" else None
    return None if node is None else node.get("value")


def _onnx_property(path: Path) -> str | None:
    """Find our entry among the properties, by walking over the outermost fields of the file only."""
    if path.stat().st_size == 0:
        msg = "it is empty"
        raise ValueError(msg)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number, start, stop in _fields(data, 0, len(data)):
            if number != _ONNX_METADATA_PROPS:
                continue
            entry = {field: data[first:last] for field, first, last in _fields(data, start, stop)}
            if entry.get(_ENTRY_KEY) == KEY.encode():
                return entry.get(_ENTRY_VALUE, b"").decode("utf-8")
    return None


def _fields(data: mmap.mmap, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a protobuf message."""
    while place < end:
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            start, (_, place) = place, _varint(data, place)
        elif kind in {1, 5}:
            start, place = place, place + (8 if kind == 1 else 4)
        elif kind == 2:
            length, start = _varint(data, place)
            place = start + length
        else:
            msg = f"no protobuf field at byte {place}"
            raise ValueError(msg)
        if place > end:
            msg = f"a field ends at byte {place} of {end}"
            raise ValueError(msg)
        yield tag >> 3, start, place


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    msg = f"no protobuf number at byte {place}"
    raise ValueError(msg)
