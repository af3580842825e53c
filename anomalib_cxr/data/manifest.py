"""Split manifests: who is in which split, in a file that proves that nobody changed it.

A manifest is a CSV file under one comment line. The line is JSON: the data set, its settings (preset, seed, ...), the
package version, the images per split, and the SHA-256 of everything else. Paths are relative to the root, so the same
file serves on another machine. Every row ends with a short check of its own, which names the rows that were touched.
"""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_cxr import __version__
from anomalib_cxr.csv_tables import csv_text, restored
from anomalib_cxr.data.splits import LABELS, SPLITS
from anomalib_cxr.data.tables import TableError
from anomalib_cxr.files import write_bytes

logger = logging.getLogger(__name__)

_FORMAT = "anomalib-cxr split 1"
_COLUMNS = ["image", "patient_id", "label", "split"]
# Which part of a set to use, and the values that ask for no part.
_ASKED = {"fold": None, "num_folds": None, "fraction": 1.0, "limit": None, "split_list": None}


def write_manifest(path: str | Path, table: pd.DataFrame, name: str, settings: dict[str, Any]) -> str:
    """Write a split, atomically.

    Args:
        path: File to write.
        table: Rows with ``image`` (relative to the root), ``patient_id``, ``label`` and ``split``.
        name: Data set.
        settings: What made the split: preset, seed and so on, as JSON can hold it.

    Returns:
        The SHA-256, in hex.
    """
    path = Path(path)
    rows = sorted(table[_COLUMNS].astype(str).itertuples(index=False, name=None))
    body = csv_text([[*_COLUMNS, "check"], *([*row, _check(row)] for row in rows)])
    head: dict[str, Any] = {
        "format": _FORMAT,
        "set": name,
        "version": __version__,
        "settings": settings,
        "images": dict(sorted(Counter(f"{row[3]} {row[2]}" for row in rows).items())),
    }
    digest = _digest(head, body)
    head["sha256"] = digest
    content = f"# {json.dumps(head, sort_keys=True)}\n{body}"
    write_bytes(path, content.encode("utf-8", "surrogateescape"))  # names of files may be no UTF-8
    logger.info("%s: wrote the split to %s, SHA-256 %s", name, path, digest)
    return digest


def read_manifest(path: str | Path, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a split back, and refuse it if anything in it was changed.

    Args:
        path: File that :func:`write_manifest` wrote.
        name: Data set that it must be of.

    Returns:
        Rows with ``image``, ``patient_id``, ``label`` and ``split``, and the head with ``set``, ``version``,
        ``settings``, ``images`` and ``sha256``.

    Raises:
        TableError: If the file is no manifest, is one of another data set, or was changed; the message says where.
    """
    path = Path(path)
    try:
        content = path.read_bytes().decode("utf-8", "surrogateescape")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"the split manifest {path} cannot be read: {error}"
        raise TableError(msg) from error
    content = content.replace("\r\n", "\n")
    first, _, body = content.partition("\n")
    head = _parse_head(path, first)
    if head["set"] != name:
        msg = f"{path} is a split of {head['set']}, not of {name}"
        raise TableError(msg)
    try:
        lines = [[restored(cell) for cell in line] for line in csv.reader(io.StringIO(body, newline=""))]
    except csv.Error as error:
        msg = f"the split manifest {path} was changed and is no CSV any more: {error}"
        raise TableError(msg) from error
    stated = head.pop("sha256")
    if _digest(head, body) != stated:
        msg = f"the split manifest {path} was changed: {_what_differs(head, lines)}; make it again"
        raise TableError(msg)
    head["sha256"] = stated
    return pd.DataFrame([line[:4] for line in lines[1:]], columns=_COLUMNS, dtype=str), head


def _parse_head(path: Path, line: str) -> dict[str, Any]:
    """Parse the comment line."""
    try:
        head = json.loads(line.removeprefix("#"))
        complete = head["format"] == _FORMAT and {"set", "version", "settings", "images", "sha256"} <= head.keys()
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        msg = f"{path} is no split manifest: its first line must be '# ' and JSON with the format '{_FORMAT}'"
        raise TableError(msg) from error
    if not complete or not isinstance(head["images"], dict):
        msg = f"{path} is no split manifest of the format '{_FORMAT}'"
        raise TableError(msg)
    return head


def _what_differs(head: dict[str, Any], lines: list[list[str]]) -> str:
    """Name the rows and counts of a changed manifest that do not agree with themselves."""
    if not lines or lines[0] != [*_COLUMNS, "check"]:
        return f"its columns are {lines[0] if lines else []} instead of {[*_COLUMNS, 'check']}"
    found = []
    wrong = [line for line in lines[1:] if len(line) != 5 or _check(tuple(line[:4])) != line[4]]
    if wrong:
        shown = ", ".join(",".join(line[:4]) for line in wrong[:3])
        found.append(f"{len(wrong)} rows differ from what was written, the first are {shown}")
    counts = Counter(f"{line[3]} {line[2]}" for line in lines[1:] if len(line) == 5)
    written = Counter(head["images"])
    found += [
        f"'{key}' has {counts[key]} images instead of {written[key]}"
        for key in sorted(counts | written)
        if counts[key] != written[key]
    ]
    return "; ".join(found) or "its first line, or the order of its rows"


def _check(row: tuple[str, ...]) -> str:
    """Short check of one row: eight hex digits."""
    return sha256("\0".join(row).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _digest(head: dict[str, Any], body: str) -> str:
    """SHA-256 over the head without its own digest, and all rows."""
    stated = json.dumps({key: value for key, value in head.items() if key != "sha256"}, sort_keys=True)
    return sha256(f"{stated}\n{body}".encode("utf-8", "surrogatepass")).hexdigest()


def check_settings(made_with: Mapping[str, Any], given: Mapping[str, Any], path: str | Path, name: str) -> None:
    """Compare the settings of a manifest with those of the datamodule that loads it.

    The manifest decides. Differences are logged, but a round of a cross-validation or a part of the data is asked for
    on purpose: where the manifest holds another one, it is refused.

    Args:
        made_with: Settings in the head of the manifest.
        given: Settings of the datamodule.
        path: File of the manifest, for messages.
        name: Data set, for messages.

    Raises:
        TableError: If ``fold``, ``num_folds``, ``fraction``, ``limit`` or a split list is given and is not the
            manifest's.
    """
    made_with = {"split_list": None, **made_with}  # which versions before it did not write
    differing = {
        key: (made_with[key], value)
        for key, value in json.loads(json.dumps(dict(given))).items()
        if key in made_with and made_with[key] != value
    }
    said = ", ".join(f"{key} {theirs!r} there, {ours!r} here" for key, (theirs, ours) in differing.items())
    asked = [key for key, unasked in _ASKED.items() if key in differing and differing[key][1] != unasked]
    if asked:
        msg = f"{name}: the split manifest {path} was made with other settings: {said}; drop {asked}, or the manifest"
        raise TableError(msg)
    if differing:
        logger.warning("%s: the split manifest %s decides, not these settings: %s", name, path, said)


def apply_manifest(table: pd.DataFrame, manifest: pd.DataFrame, path: str | Path, name: str) -> pd.Series:
    """Take the splits of a manifest for the rows of a table.

    Args:
        table: Rows with ``image_path`` relative to the root, ``patient_id`` and ``label``.
        manifest: Rows of :func:`read_manifest`.
        path: File of the manifest, for messages.
        name: Data set, for messages.

    Returns:
        Split of each row, "" for rows that the manifest does not name, with the index of ``table``.

    Raises:
        TableError: If the manifest names images that the table does not have, or disagrees about a patient or label.
    """
    listed = manifest.set_index("image")
    odd = set(manifest["split"]) - set(SPLITS) | set(manifest["label"]) - set(LABELS)
    if odd or not listed.index.is_unique:
        msg = f"the split manifest {path} names an image twice, or unknown splits or labels {sorted(odd)}"
        raise TableError(msg)
    absent = listed.index.difference(pd.Index(table["image_path"]))
    if len(absent):
        msg = (
            f"{name}: {len(absent)} images of the split manifest {path} are not in the table after its filters, "
            f"the first is {absent[0]}; use the settings that made the manifest"
        )
        raise TableError(msg)
    ours = table.set_index("image_path").loc[listed.index]
    for column in ("patient_id", "label"):
        other = ours[column].astype(str) != listed[column]
        if other.any():
            image = other[other].index[0]
            msg = (
                f"{name}: the split manifest {path} has another {column} for {int(other.sum())} images, the first is "
                f"{image}: {listed[column][image]} there, {ours[column][image]} here"
            )
            raise TableError(msg)
    split = table["image_path"].map(listed["split"]).fillna("")
    left = int((split == "").sum())
    if left:
        logger.info("%s: %d images are not in the split manifest and not used", name, left)
    return split
