"""The CSV tables that this package writes: each row whole, and no cell that a spreadsheet would carry out."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_cxr.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd

# What spreadsheets take for the start of a formula, the wide forms of East Asia among them.
_FORMULA = re.compile(r"'*\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def neutral(cell: Any) -> Any:
    """Keep a spreadsheet from taking text for a formula.

    Args:
        cell: Of a table, of any type.

    Returns:
        Text that begins as a formula does, and is no number, with an apostrophe before it; all else as it is.

    Examples:
        >>> neutral("=HYPERLINK(1)"), neutral("-1.5"), neutral("a=b")
        ("'=HYPERLINK(1)", '-1.5', 'a=b')
    """
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def restored(cell: str) -> str:
    """Take back what :func:`neutral` did to a text.

    Args:
        cell: As it stands in a table that this package wrote.

    Returns:
        The text that was written.

    Examples:
        >>> restored("'=HYPERLINK(1)"), restored("'tis")
        ('=HYPERLINK(1)', "'tis")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def write_table(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table, atomically, without its index.

    Text that is no UTF-8 (surrogate escapes, as in names of files) is written as it is on disk.

    Args:
        path: File to write.
        table: Its cells and names of columns are made :func:`neutral`.

    Raises:
        OSError: If it cannot be written.
    """
    columns = [table[name].astype(object).where(table[name].notna(), "").tolist() for name in table.columns]
    text = csv_text([table.columns.tolist(), *zip(*columns, strict=True)])
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Write rows as CSV, each ending in ``\n``.

    Args:
        rows: Cells, made :func:`neutral`; numbers as Python writes them, so that they come back to the last digit.

    Returns:
        The text; a cell with a line break of any kind in it is quoted.

    Examples:
        >>> csv_text([["a", 0.1], ["=1,2", ""]])
        'a,0.1\n"\'=1,2",\n'
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # a lone "\r" is quoted for this one only
    lines = []
    for row in rows:
        text.seek(0)
        text.truncate()
        writer.writerow([neutral(cell) for cell in row])
        lines.append(text.getvalue().removesuffix("\r\n"))
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def growing_table(path: str | Path, *header: str) -> Iterator[Callable[..., None]]:
    """Open a new CSV table whose rows are on disk as soon as they are added, each whole or not at all.

    For long runs, which shall leave what they have done. Text that is no UTF-8 (surrogate escapes, as in names of
    files) is written as it is on disk.

    Args:
        path: File to make; nothing may stand there, not even a link.
        *header: Names of the columns.

    Yields:
        Function that adds a row, given its cells. Where the disk is full it raises OSError, and the table ends with
        the row before.

    Raises:
        FileExistsError: If the file exists.
        OSError: If it cannot be written.
    """
    with Path(path).open("xb", buffering=0) as file:

        def add(*row: object) -> None:
            _append_whole(file, csv_text([row]).encode("utf-8", "surrogateescape"))

        add(*header)
        yield add


def _append_whole(file: io.FileIO, content: bytes) -> None:
    """Write at the end of a file; what a full disk took in part is taken back."""
    start, left = file.tell(), memoryview(content)
    try:
        while left:
            left = left[file.write(left) or 0 :]
    except BaseException:
        file.seek(start)
        file.truncate()
        raise
