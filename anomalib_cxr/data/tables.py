"""Tables that come with a data set, read as text and without trust.

Values stay the strings that the file holds: no number, date or missing value is guessed, and nothing is evaluated.
"""

import csv
import gzip
import logging
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

logger = logging.getLogger(__name__)

MAX_DEPTH = 32
"""Most bits that a pixel of any readable file has."""

_DELIMITERS = (",", ";", "\t", "|")
_MISSING = frozenset({"", "nan", "none", "na", "n/a", "null"})
_ITEM = re.compile(r"""\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*(,|$)""")


class TableError(ValueError):
    """A table that cannot be used. The message names the file, the place and what to do."""


def read_table(path: str | Path, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read columns of a CSV file, plain or gzipped.

    The delimiter is the one of comma, semicolon, tab and bar that makes the header hold the required columns. A byte
    order mark is passed over.

    Args:
        path: File, gzipped where its content says so.
        required: Columns that must be there, at least one.
        optional: Further columns that are read where they are there.

    Returns:
        Frame of str in the order of ``required`` then ``optional``, one row a record; empty cells are "".

    Raises:
        TableError: If the file is missing, empty, no UTF-8 text or no CSV, lacks required columns or names one twice,
            or has no row or one of another length than its first line.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        opener = gzip.open if gzipped else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            delimiter, columns = _read_header(path, text.readline(1_000_000), required)
            wanted = [*required, *(column for column in optional if column in columns and column not in required)]
            rows = csv.reader(text, delimiter=delimiter, strict=True)
            cells = _collect(path, rows, len(columns), [columns.index(column) for column in wanted])
    except TableError:
        raise
    except FileNotFoundError as error:
        msg = f"the table {path} does not exist"
        raise TableError(msg) from error
    except (ValueError, OSError, EOFError, zlib.error, csv.Error) as error:
        msg = f"{path} cannot be read as a CSV table: {' '.join(str(error).split())}"
        raise TableError(msg) from error
    if not cells[0]:
        msg = f"{path} has no row below its first line"
        raise TableError(msg)
    return pd.DataFrame({column: pd.Series(cells[place], dtype=str) for place, column in enumerate(wanted)})


def _collect(path: Path, rows: Iterable[list[str]], length: int, places: list[int]) -> list[list[str]]:
    """Collect the wanted cells by column, and refuse rows that are too short or too long."""
    cells: list[list[str]] = [[] for _ in places]
    adders = [(column.append, place) for column, place in zip(cells, places, strict=True)]
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        if len(row) != length and (len(row) < length or any(row[length:])):
            msg = f"{path}: data row {number} has {len(row)} cells, the first line has {length}"
            raise TableError(msg)
        for add, place in adders:
            add(row[place])
    return cells


def _read_header(path: Path, line: str, required: Sequence[str]) -> tuple[str, list[str]]:
    """Find the delimiter by the columns that the first line must hold."""
    if not line.strip():
        msg = f"the table {path} is empty, or its first line is"
        raise TableError(msg)
    best: list[str] = []
    for delimiter in _DELIMITERS:
        columns = [column.strip() for column in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])]
        twice = [column for column in required if columns.count(column) > 1]
        if twice:
            msg = f"{path} has the column '{twice[0]}' more than once"
            raise TableError(msg)
        if set(required) <= set(columns):
            if delimiter != ",":
                logger.info("%s is separated by %r", path.name, delimiter)
            return delimiter, columns
        best = max(best, columns, key=len)
    missing = [column for column in required if column not in best]
    msg = f"{path} lacks the columns {missing}; its first line has {[column[:40] for column in best[:50]]}"
    raise TableError(msg)


def is_missing(values: pd.Series) -> pd.Series:
    """Tell cells without a value, also those that say so in words: "nan", "None", "NA", "null".

    Args:
        values: Column of str.

    Returns:
        Boolean column.
    """
    return values.str.strip().str.lower().isin(_MISSING)


def parse_labels(cell: str) -> tuple[str, ...]:
    """Parse a list of labels written as Python writes a list of strings.

    Args:
        cell: For instance ``"['normal', ' pleural effusion', 'normal']"``.

    Returns:
        Distinct labels, trimmed, in their order.

    Raises:
        TableError: If the cell is anything but a list of quoted strings. It is parsed as text, never evaluated.
    """
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]") and len(text) >= 2):
        msg = f"{cell[:80]!r} is not a list of labels"
        raise TableError(msg)
    body = text[1:-1].strip()
    labels: dict[str, None] = {}
    position = 0
    while position < len(body):
        item = _ITEM.match(body, position)
        if item is None:
            msg = f"{cell[:80]!r} is not a list of quoted labels"
            raise TableError(msg)
        label = (item[1] if item[1] is not None else item[2]).strip()
        if label:
            labels[label] = None
        position = item.end()
    return tuple(labels)


def parse_numbers(values: pd.Series, path: str | Path) -> pd.Series:
    """Parse a column of numbers; cells without a value become NaN.

    Args:
        values: Column of str.
        path: File it came from, for the message.

    Returns:
        Column of float.

    Raises:
        TableError: If a cell is neither a finite number nor empty.
    """
    known = {cell: _number(cell) for cell in set(values)}
    if None in known.values():
        row = next(row for row, cell in enumerate(values) if known[cell] is None)
        msg = f"{path}: {values.iloc[row][:40]!r} in column '{values.name}', data row {row + 1}, is no number"
        raise TableError(msg)
    return pd.Series([known[cell] for cell in values], index=values.index, name=values.name, dtype=float)


def parse_depths(values: pd.Series, path: str | Path) -> pd.Series:
    """Parse a column of stored bit depths; cells without a value become NaN.

    Args:
        values: Column of str.
        path: File it came from, for the message.

    Returns:
        Column of float, whole numbers in [1, :data:`MAX_DEPTH`].

    Raises:
        TableError: If a cell is neither empty nor such a number.
    """
    numbers = parse_numbers(values, path)
    wrong = numbers.notna() & ~(numbers.between(1, MAX_DEPTH) & (numbers % 1 == 0))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        what = f"{values.iloc[row][:40]!r} in column '{values.name}', data row {row + 1}"
        msg = f"{path}: {what}, is no bit depth: give a whole number from 1 to {MAX_DEPTH}, or leave the cell empty"
        raise TableError(msg)
    return numbers


def stored_depths(samples: pd.DataFrame) -> list[int | None]:
    """Stored bit depth of each image of a samples table.

    Args:
        samples: Table, perhaps with a column ``bits`` of whole numbers, missing where the file tells its depth.

    Returns:
        One entry a row, None where it is missing or there is no such column.

    Raises:
        ValueError: If an entry is no whole number of at least 1.
    """
    if "bits" not in samples.columns:
        return [None] * len(samples)
    return [stored_depth(value) for value in samples["bits"]]


def stored_depth(value: Any) -> int | None:
    """The same for one entry."""
    if pd.isna(value):
        return None
    if value != int(value) or value < 1:
        msg = f"bits must be whole numbers of at least 1, got {value}"
        raise ValueError(msg)
    return int(value)


def _number(cell: str) -> float | None:
    """Parse one cell: NaN where it is empty, None where it is no finite number."""
    text = cell.strip()
    if text.lower() in _MISSING:
        return math.nan
    try:
        number = float(text)
    except ValueError:
        return None
    if "_" in text:  # Python's own notation, no table's
        return None
    return number if math.isfinite(number) else None


def refuse_duplicates(ids: pd.Series, path: str | Path) -> None:
    """Refuse a column of ids that names one twice.

    Args:
        ids: Column of ids.
        path: File it came from, for the message.

    Raises:
        TableError: If an id occurs more than once.
    """
    twice = ids[ids.duplicated()]
    if len(twice):
        msg = f"{path}: {len(twice)} rows repeat an id in column '{ids.name}', the first is {twice.iloc[0]!r}"
        raise TableError(msg)
