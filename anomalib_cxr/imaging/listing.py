"""The radiographs below a folder, listed in one way for data sets and for inference."""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from anomalib_cxr.imaging.radiograph import is_radiograph

Identity = tuple[int, int]
"""What a folder is, by whatever name: its device and its number there."""


@dataclass
class FileScan:
    """What a folder holds.

    Attributes:
        root: The folder scanned.
        images: Paths of the images below the root, with forward slashes, sorted.
        ignored: Number of other files: hidden ones such as ``.DS_Store`` and ``._name.png``, and other formats.
        hidden: Folders passed over: hidden ones and ``__MACOSX``, which hold copies.
        loops: Linked folders that have been entered by another name or lead back upwards, not followed.
        closed: Folders that cannot be opened, each with the reason.
        folders: Path below the root, with a slash at its end unless it is the root itself, of each folder entered.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    ignored: int = 0
    hidden: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)
    folders: dict[Identity, str] = field(default_factory=dict)


def list_radiographs(root: str | Path) -> FileScan:
    """List the radiographs below a folder in one walk.

    Links are followed, and each folder is entered once: by its own name where it lies below the root, else by the first
    link to it. Hidden files and folders and ``__MACOSX`` are passed over.

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
    scan.folders[identity(root)] = ""
    folders, links = deque([""]), deque[str]()
    while folders or links:
        if folders:
            prefix = folders.popleft()
        else:
            prefix = links.popleft()
            place = identity(root / prefix)
            if place in scan.folders:
                scan.loops.append(prefix[:-1])
                continue
            scan.folders[place] = prefix
        for entry in _entries(scan, prefix):
            relative = f"{prefix}{entry.name}"
            if not _is_folder(entry):
                if is_hidden(PurePath(entry.name)) or not is_radiograph(entry.path):
                    scan.ignored += 1
                else:
                    scan.images.append(relative)
            elif is_hidden(PurePath(entry.name)):
                scan.hidden.append(relative)
            elif entry.is_symlink():
                links.append(f"{relative}/")
            elif identity(entry.path) not in scan.folders:
                scan.folders[identity(entry.path)] = f"{relative}/"
                folders.append(f"{relative}/")
            else:  # a mount, or a part of what a link has led to
                scan.loops.append(relative)
    scan.images.sort()
    scan.loops.sort()
    return scan


def is_hidden(path: PurePath) -> bool:
    """Whether a path below the root, or a folder on its way, is hidden or a Mac's folder of copies.

    Examples:
        >>> [is_hidden(PurePath(path)) for path in ("a.png", "a/._b.png", ".a/b.png", "__MACOSX/b.png")]
        [False, True, True, True]
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def identity(folder: str | os.PathLike[str]) -> Identity:
    """What tells a folder whatever it is called.

    Raises:
        OSError: If there is no such folder.
    """
    status = os.stat(folder)  # noqa: PTH116 - entry.stat() has no inode on Windows
    return status.st_dev, status.st_ino


def _entries(scan: FileScan, prefix: str) -> list[os.DirEntry[str]]:
    """What one folder holds, sorted; nothing where it cannot be opened, which is noted."""
    try:
        with os.scandir(scan.root / prefix) as entries:
            return sorted(entries, key=lambda item: item.name)
    except OSError as error:
        scan.closed[prefix.rstrip("/") or "."] = f"{scan.root / prefix} cannot be opened: {error.strerror}"
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder; a link that leads round in circles is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False
