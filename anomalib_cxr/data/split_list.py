"""Splits that somebody published as lists of file names, for any set whose images they are.

CSV with the columns ``image`` and ``split``, or JSON: names per part, ``{"train": [...], "test": [...]}``, also one
level deeper, by label or whatever else: ``{"train": {"0": [...]}, "test": {"0": [...], "1": [...]}}``.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_cxr.data.mask_files import stem_of
from anomalib_cxr.data.tables import TableError, read_columns

logger = logging.getLogger(__name__)

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Words for the parts of a split, in lower case."""


def hash_list(path: str | Path) -> str:
    """SHA-256 of a list, in hex.

    Args:
        path: The list.

    Raises:
        TableError: If it cannot be read.
    """
    try:
        return sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        msg = f"the split list {path} cannot be read: {error}"
        raise TableError(msg) from error


def read_split_list(path: str | Path) -> dict[str, str]:
    """Read a list.

    Args:
        path: CSV or JSON, which its first letter tells.

    Returns:
        "train", "val" or "test" for each name, as the list writes it but with forward slashes.

    Raises:
        TableError: If the file is missing or of another form, has a part of an unknown name, or names an image twice.
    """
    path = Path(path)
    hash_list(path)  # says whether it can be read at all
    if path.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        pairs = list(_read_json(path))
    else:
        columns = read_columns(path, ["image", "split"])
        pairs = list(zip(columns["image"], columns["split"], strict=True))
    parts: dict[str, str] = {}
    for name, word in pairs:
        part = PARTS.get(word.strip().lower())
        if part is None:
            msg = f"{path}: unknown part {word[:40]!r} of {name[:80]!r}, use train, val or test"
            raise TableError(msg)
        listed = name.strip().replace("\\", "/")
        if not listed or listed in parts:
            msg = f"{path}: {name[:80]!r} is listed twice" if listed else f"{path}: an image of {part} has no name"
            raise TableError(msg)
        parts[listed] = part
    if not parts:
        msg = f"{path} lists no image"
        raise TableError(msg)
    return parts


def _read_json(path: Path) -> Iterator[tuple[str, str]]:
    """Names of a JSON list, each with the key of its part."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        msg = f"{path} cannot be read as JSON: {' '.join(str(error).split())}"
        raise TableError(msg) from error
    for part, group in content.items():
        for names in group.values() if isinstance(group, dict) else [group]:
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                msg = f'{path} has something else than lists of file names at "{part[:40]}"'
                raise TableError(msg)
            yield from ((name, part) for name in names)


def apply_split_list(table: pd.DataFrame, parts: Mapping[str, str], path: str | Path, name: str) -> pd.Series:
    """Find the images of a list in a table.

    A name is looked for as a path below the root, then as the end of one, so that bare file names are found in any
    folder. Suffixes do not count, so that lists of PNG files serve for the DICOM files that they were made of.

    Args:
        table: Rows with ``image_path`` relative to the root.
        parts: Names with their parts, see :func:`read_split_list`.
        path: The list, for messages.
        name: Data set, for messages.

    Returns:
        Part of each row, "" for rows that the list does not name, with the index of ``table``.

    Raises:
        TableError: If a name is that of no image of the table, or of several, or two names are of one image.
    """
    paths = {row: stem_of(image) for row, image in zip(table.index, table["image_path"], strict=True)}
    by_path: dict[str, list[Any]] = {}
    by_name: dict[str, list[Any]] = {}
    for row, stem in paths.items():
        by_path.setdefault(stem, []).append(row)
        by_name.setdefault(stem.rpartition("/")[2], []).append(row)
    split = dict.fromkeys(table.index, "")
    unknown = []
    for listed, part in parts.items():
        stem = stem_of(listed)
        rows = by_path.get(stem) or [
            row for row in by_name.get(stem.rpartition("/")[2], []) if f"/{paths[row]}".endswith(f"/{stem}")
        ]
        if not rows:
            unknown.append(listed)
        elif len(rows) > 1:
            images = table["image_path"][rows].tolist()
            msg = f"{name}: {listed!r} of the split list {path} is the name of {len(rows)} images, such as {images[:2]}"
            raise TableError(msg)
        elif split[rows[0]]:
            msg = f"{name}: the split list {path} names {table['image_path'][rows[0]]} twice, once as {listed!r}"
            raise TableError(msg)
        else:
            split[rows[0]] = part
    if unknown:
        msg = (
            f"{name}: {len(unknown)} of {len(parts)} images of the split list {path} are not in the table after its "
            f"filters, the first is {unknown[0]!r}: use the filters that it was made with"
        )
        raise TableError(msg)
    left = len(table) - len(parts)
    logger.info("%s: split list %s names %d images, %d others are not used", name, path, len(parts), left)
    return pd.Series(split, index=table.index, dtype=object)
