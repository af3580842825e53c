"""Tables that come with a data set, read as text and without trust.

Values stay the strings that the file holds: no number, date or missing value is guessed, and nothing is evaluated.
"""

import csv
import gzip
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

logger = logging.getLogger(__name__)

MAX_DEPTH = 32
"""Most bits that a pixel of any readable file has."""

_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_LINE = 1_000_000
_SEPARATOR = re.compile(r'"?sep=(.)"?(?:\1|[,;\t])*', re.IGNORECASE | re.DOTALL)
_UTF8 = "utf-8-sig"
_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_MULTIBYTE = re.compile("[^\x00-\x7f\udc80-\udcff]")
_MISSING = frozenset({"", "nan", "none", "na", "n/a", "null"})
_WHOLE = re.compile(r"0*(\d+)(?:\.0*)?")
_ITEM = re.compile(r"""\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*(,|$)""")


class TableError(ValueError):
    """A table that cannot be used. The message names the file, the place and what to do."""


def read_table(path: str | Path, required: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """Read columns of a CSV file into a frame, see :func:`read_columns`.

    Args:
        path: File, gzipped where its content says so.
        required: Columns that must be there, at least one.
        optional: Further columns that are read where they are there.

    Returns:
        Frame of str in the order of ``required`` then ``optional``, one row a record; empty cells are "".

    Raises:
        TableError: As :func:`read_columns`.
    """
    columns = read_columns(path, required, optional)
    return pd.DataFrame({column: pd.Series(cells, dtype=str) for column, cells in columns.items()})


def read_columns(path: str | Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[str]]:
    """Read columns of a CSV file, plain or gzipped.

    The delimiter is that of a first line such as ``sep=;``, as Excel writes it, else the one of comma, semicolon, tab
    and bar that makes the header hold the required columns. Line breaks and repeated blanks in a header cell are one
    blank. The text is UTF-8, or UTF-16 or UTF-32, which a byte order mark or zeros tell; else Windows-1252, which is
    warned of.

    Args:
        path: File, gzipped where its content says so.
        required: Columns that must be there, at least one.
        optional: Further columns that are read where they are there.

    Returns:
        Cells by column, in the order of ``required`` then ``optional``, one a record; empty cells are "".

    Raises:
        TableError: If the file is missing, empty, no text or no CSV, lacks required columns or names one twice, or has
            no row or one of another length than its header. Cells below last columns without a name may be missing.
    """
    path = Path(path)
    try:
        opener = _opener(path)
        with opener(path, "rb") as file:
            encoding = _encoding(file.read(4))
        try:
            return _read(path, partial(opener, path, "rt", encoding=encoding, newline=""), required, optional)
        except UnicodeDecodeError:
            if encoding != _UTF8 or not _is_single_byte(opener, path):
                raise
        columns = _read(path, partial(opener, path, "rt", encoding="cp1252", newline=""), required, optional)
        logger.warning("%s is no UTF-8 and is read as Windows-1252: save it as UTF-8 if letters are wrong", path)
        return columns
    except TableError:
        raise
    except FileNotFoundError as error:
        msg = f"the table {path} does not exist"
        raise TableError(msg) from error
    except (ValueError, OSError, EOFError, zlib.error, csv.Error) as error:
        msg = f"{path} cannot be read as a CSV table: {' '.join(str(error).split())}"
        raise TableError(msg) from error


def _opener(path: Path) -> Callable[..., Any]:
    """What opens a file: plainly, or through gzip where its content says so."""
    with path.open("rb") as file:
        return gzip.open if file.read(2) == b"\x1f\x8b" else open


def _encoding(head: bytes) -> str:
    """Encoding by the first four bytes of a text."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if len(head) == 4 and 0 in head:  # no mark, and yet two bytes a letter
        return "utf-16-le" if head[0] else "utf-16-be"
    return _UTF8


def _is_single_byte(opener: Callable[..., Any], path: Path) -> bool:
    """Whether nothing in a file beyond ASCII is UTF-8: else it is UTF-8 with a broken place."""
    with opener(path, "rb") as file:
        return not _MULTIBYTE.search(file.read().decode("utf-8", "surrogateescape"))


def _read(
    path: Path, open_text: Callable[[], Any], required: Sequence[str], optional: Sequence[str]
) -> dict[str, list[str]]:
    """Read the columns of a text by the first delimiter that makes its header hold them."""
    with open_text() as text:
        stated = _SEPARATOR.fullmatch(text.readline(_LONGEST_LINE).rstrip("\r\n"))
    best: list[str] = []
    failure: csv.Error | None = None
    for delimiter in [stated[1]] if stated else _DELIMITERS:
        with open_text() as text:
            if stated:
                text.readline()
            rows = csv.reader(iter(partial(text.readline, _LONGEST_LINE), ""), delimiter=delimiter, strict=True)
            try:
                columns = [_plain_name(column) for column in next(rows, [])]
            except csv.Error as error:
                failure = error
                continue
            if not any(columns):
                msg = f"the table {path} is empty, or its first line is"
                raise TableError(msg)
            wanted = dict.fromkeys([*required, *(column for column in optional if _plain_name(column) in columns)])
            places = _find_columns(path, columns, required, wanted)
            if places is None:
                best = max(best, columns, key=len)
                continue
            if delimiter != ",":
                logger.info("%s is separated by %r", path.name, delimiter)
            cells = _collect(path, rows, columns, places)
            if not cells[0]:
                msg = f"{path} has no row below its first line"
                raise TableError(msg)
            return dict(zip(wanted, cells, strict=True))
    if failure is not None and not best:
        raise failure
    missing = [column for column in required if _plain_name(column) not in best]
    msg = f"{path} lacks the columns {missing}; its first line has {[column[:40] for column in best[:50]]}"
    raise TableError(msg)


def _find_columns(path: Path, columns: list[str], required: Sequence[str], wanted: Iterable[str]) -> list[int] | None:
    """Place of each wanted column, or None where a required one is not there."""
    twice = [column for column in wanted if columns.count(_plain_name(column)) > 1]
    if twice:
        msg = f"{path} has the column '{twice[0]}' more than once"
        raise TableError(msg)
    if not {_plain_name(column) for column in required} <= set(columns):
        return None
    return [columns.index(_plain_name(column)) for column in wanted]


def _plain_name(column: str) -> str:
    """Name of a column in one line."""
    return " ".join(column.split())


def _collect(path: Path, rows: Iterable[list[str]], columns: list[str], places: list[int]) -> list[list[str]]:
    """Collect the wanted cells by column, and refuse rows that are too short or too long."""
    length = len(columns)
    shortest = max(place for place, column in enumerate(columns, start=1) if column)
    cells: list[list[str]] = [[] for _ in places]
    adders = [(column.append, place) for column, place in zip(cells, places, strict=True)]
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        if len(row) != length and (len(row) < shortest or any(row[length:])):
            msg = f"{path}: data row {number} has {len(row)} cells, the first line has {length}"
            raise TableError(msg)
        for add, place in adders:
            add(row[place])
    return cells


def read_lines(path: str | Path) -> list[str]:
    """Read a list of one entry a line, plain or gzipped, without the blanks around them and without empty lines.

    Args:
        path: File in UTF-8.

    Returns:
        The entries.

    Raises:
        TableError: If the file is missing, no text, or has no entry.
    """
    path = Path(path)
    try:
        with _opener(path)(path, "rt", encoding=_UTF8) as text:
            lines = [stripped for line in text.read().splitlines() if (stripped := line.strip())]
    except (ValueError, OSError, EOFError, zlib.error) as error:
        msg = f"the list {path} cannot be read: {' '.join(str(error).split())}"
        raise TableError(msg) from error
    if not lines:
        msg = f"the list {path} is empty"
        raise TableError(msg)
    return lines


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


def parse_number(cell: str) -> float:
    """Parse one cell.

    Args:
        cell: Text of the cell.

    Returns:
        Its finite number; NaN where it has none, be it empty or another text.
    """
    number = _number(cell)
    return math.nan if number is None else number


def refuse_repeated(ids: Sequence[str], column: str, path: str | Path) -> None:
    """Refuse a list of ids that names one twice.

    Args:
        ids: The ids.
        column: Column or list that they are, for the message.
        path: File it came from, for the message.

    Raises:
        TableError: If an id occurs more than once.
    """
    repeats = len(ids) - len(set(ids))
    if repeats:
        seen: set[str] = set()
        first = next(one for one in ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        msg = f"{path}: {repeats} rows repeat an id in column '{column}', the first is {first!r}"
        raise TableError(msg)


def refuse_duplicates(ids: pd.Series, path: str | Path) -> None:
    """Refuse a column of ids that names one twice.

    Args:
        ids: Column of ids.
        path: File it came from, for the message.

    Raises:
        TableError: If an id occurs more than once.
    """
    refuse_repeated(ids.tolist(), str(ids.name), path)


def unify_ids(ids: pd.Series, name: str) -> pd.Series:
    """Give ids that are one number in several spellings, such as "7", "7.0" and "007", one spelling.

    Spreadsheets turn "007" into 7 and, in a column with empty cells, 7 into 7.0. Ids of one spelling stay as they are.

    Args:
        ids: Column of ids.
        name: Data set, for the log.

    Returns:
        The column, where the number alone stands for those in several spellings.
    """
    numbers = {spelling: found[1] for spelling in ids.unique() if (found := _WHOLE.fullmatch(str(spelling)))}
    spellings: dict[str, list[str]] = {}
    for spelling, number in numbers.items():
        spellings.setdefault(number, []).append(spelling)
    several = {number: found for number, found in spellings.items() if len(found) > 1}
    if several:
        first = sorted(next(iter(several.values())))
        logger.warning(
            "%s: %d patients are spelt in several ways, such as %s, and are one each", name, len(several), first
        )
    return ids.map(lambda spelling: numbers[spelling] if numbers.get(spelling) in several else spelling)
