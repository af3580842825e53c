"""Files that appear under their names whole or not at all, and never where a link leads."""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


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
        durable: Wait for the disk, so that a loss of power too leaves the old file or the new one; folders that are
            made wait too.

    Yields:
        Path of an empty file in the same folder. It ends in ``.tmp``: say the format of a picture or archive.

    Raises:
        OSError: If the folder or file cannot be written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_atomically(Path(folder) / "notes.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "notes.txt").read_text()
        'whole'
    """
    path = Path(path)
    new = [folder for folder in path.parents if not folder.exists()] if durable else []
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
            for folder in (path.parent, *(folder.parent for folder in new)):
                _wait_for_disk(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _wait_for_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_link(path: str | Path) -> None:
    """Take away a link that stands where a file or folder of ours is to be; what it leads to stays as it is.

    Args:
        path: Place of the file or folder; what is there and is no link stays.
    """
    path = Path(path)
    if path.is_symlink():
        logger.warning(
            "%s was a link to %s and is taken away, so that nothing is written there.", path, path.readlink()
        )
        path.unlink()


def folder_below(root: str | Path, *names: str) -> Path:
    """Make a folder below another one, in which links are not followed.

    Args:
        root: Folder of results, which may be a link.
        *names: Folders below it, one in the other; links in their places are taken away.

    Returns:
        The folder.

    Raises:
        OSError: If it cannot be made.
    """
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        folder /= name
        remove_link(folder)
        folder.mkdir(exist_ok=True)
    return folder


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


def sha256_of(path: str | Path) -> str:
    """Digest of a file of any size.

    Args:
        path: The file.

    Returns:
        Its SHA-256 in hexadecimal digits.
    """
    digest = sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that notes how far something has come.

    Args:
        path: The file.

    Returns:
        What it holds; None where there is none, or it was torn, which the log says: the step is done again then.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        logger.warning("%s cannot be read and counts for nothing: %s", path, error)
        return None
    return content if isinstance(content, dict) else None
