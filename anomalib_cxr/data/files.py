"""Files of a data set: found in one scan of the folder, never looked up one by one, never outside the root."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from anomalib_cxr.imaging import is_radiograph


@dataclass
class FileScan:
    """What a folder holds.

    Attributes:
        root: The folder scanned.
        images: Paths of the images below the root, with forward slashes, sorted.
        ignored: Number of other files: hidden ones such as ``.DS_Store`` and ``._name.png``, and other formats.
        loops: Linked folders that lead back to a folder already entered, not followed.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    ignored: int = 0
    loops: list[str] = field(default_factory=list)


def scan_images(root: str | Path) -> FileScan:
    """List the images below a folder in one walk.

    Links are followed, each folder once. Hidden folders and ``__MACOSX`` are passed over.

    Args:
        root: Folder to scan.

    Returns:
        The scan.

    Raises:
        FileNotFoundError: If ``root`` does not exist.
        NotADirectoryError: If ``root`` is no folder.
    """
    root = Path(root)
    if not root.exists():
        msg = f"{root} does not exist, give the folder that holds the images"
        raise FileNotFoundError(msg)
    if not root.is_dir():
        msg = f"{root} is a file, give the folder that holds the images"
        raise NotADirectoryError(msg)
    scan = FileScan(root)
    status = root.stat()
    entered = {(status.st_dev, status.st_ino)}
    folders = [""]
    while folders:
        prefix = folders.pop()
        with os.scandir(root / prefix) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                relative = f"{prefix}{entry.name}"
                if _is_folder(entry):
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    status = os.stat(entry.path)  # noqa: PTH116 - entry.stat() has no inode on Windows
                    if (status.st_dev, status.st_ino) in entered:
                        scan.loops.append(relative)
                        continue
                    entered.add((status.st_dev, status.st_ino))
                    folders.append(f"{relative}/")
                elif entry.name.startswith(".") or not is_radiograph(entry.path):
                    scan.ignored += 1
                else:
                    scan.images.append(relative)
    scan.images.sort()
    return scan


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder; a link that leads round in circles is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


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
