"""Files that appear under their names whole or not at all, and tables that end with a whole row."""

import csv
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_atomically(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary file to write, which takes the name of ``path`` once the block has ended well.

    A run that is killed in the block leaves the old file or none, and a hidden ``.….tmp`` beside it; an error, such as
    that of a full disk, leaves the old file or none and nothing else. Any number of processes and threads may write one
    file: each has a temporary file of its own, and the last to end wins. A link under the name of ``path`` is replaced,
    not followed; the temporary file is new, so that no link planted under its name is followed either. The file gets
    the rights that any new file of the process gets.

    Args:
        path: File to write; its folder is made if it does not exist.
        durable: Wait for the disk, so that a loss of power too leaves the old file or the new one.

    Yields:
        Path of an empty file in the same folder. It ends in ``.tmp``: say the format of a picture or archive.

    Raises:
        OSError: If the folder or file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_atomically(Path(folder) / "notes.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "notes.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not with the file's own name in it: that may be as long as a name can be.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        if durable:
            _wait_for_disk(temporary)
        temporary.replace(path)
        if durable and os.name == "posix":  # elsewhere a folder cannot be opened
            _wait_for_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically, see :func:`written_atomically`.

    Args:
        path: File to write.
        content: What it shall hold.

    Raises:
        OSError: If it cannot be written.
    """
    with written_atomically(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    r"""Write a text in UTF-8 atomically, its ``\n`` as they are, see :func:`written_atomically`.

    Args:
        path: File to write.
        text: What it shall hold.

    Raises:
        OSError: If it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


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
            text = io.StringIO(newline="")
            csv.writer(text).writerow(row)
            _append_whole(file, text.getvalue().encode("utf-8", "surrogateescape"))

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
