"""Files of a data set: found in one scan of the folder, never looked up one by one, never outside the root."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from anomalib_cxr.imaging.listing import FileScan, list_radiographs


def scan_images(root: str | Path) -> FileScan:
    """List the images below a folder, see :func:`~anomalib_cxr.imaging.listing.list_radiographs`.

    Args:
        root: Folder to scan.

    Returns:
        The scan.

    Raises:
        FileNotFoundError: If ``root`` does not exist.
        NotADirectoryError: If ``root`` is no folder.
        PermissionError: If a folder below it cannot be opened: its images would be missing without a word.
    """
    scan = list_radiographs(root)
    if scan.closed:
        msg = f"{len(scan.closed)} folders are closed, the first: {next(iter(scan.closed.values()))}"
        raise PermissionError(msg)
    return scan


def inside(root: Path, listed: str) -> str:
    """Bring a listed path into the form that a scan of the root uses, and refuse one that leaves the root.

    Args:
        root: Folder of the data set.
        listed: Path as a table gives it: relative to the root, or absolute below it; either slash.

    Returns:
        Path relative to the root, with forward slashes and without "." or empty parts.

    Raises:
        ValueError: If the path is empty, holds a NUL, or leads out of the root.
    """
    text = str(listed)
    if not text.strip() or "\0" in text:
        msg = f"{text!r} is no path of an image"
        raise ValueError(msg)
    text = text.replace("\\", "/")
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).drive:
        for base in (root, root.absolute()):
            prefix = f"{base.as_posix().rstrip('/')}/"
            if text.startswith(prefix):
                text = text[len(prefix) :]
                break
        else:
            msg = f"{listed!r} is outside the root {root}"
            raise ValueError(msg)
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            if not parts:
                msg = f"{listed!r} leads out of the root {root}"
                raise ValueError(msg)
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    if not parts:
        msg = f"{listed!r} is no path of an image"
        raise ValueError(msg)
    return "/".join(parts)


def find_missing(root: Path, listed: Iterable[str]) -> list[str]:
    """Find listed files that do not exist: each folder is read once, no file is looked up by itself.

    Args:
        root: Folder of the data set.
        listed: Paths below the root, with forward slashes.

    Returns:
        The missing ones, in the order given.
    """
    listed = list(listed)
    names: dict[str, set[str]] = {}
    for folder in {path.rpartition("/")[0] for path in listed}:
        try:
            with os.scandir(root / folder) as entries:
                names[folder] = {entry.name for entry in entries}
        except OSError:
            names[folder] = set()
    missing = []
    for path in listed:
        folder, _, name = path.rpartition("/")
        if name not in names[folder]:
            missing.append(path)
    return missing
