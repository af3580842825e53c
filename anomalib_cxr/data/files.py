"""Files of a data set: found in one scan of the folder, never looked up one by one, never outside the root."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from anomalib_cxr.data.tables import TableError
from anomalib_cxr.imaging import RADIOGRAPH_SUFFIXES
from anomalib_cxr.imaging.listing import FileScan, list_radiographs

_LONGEST_PATH = 4096
_NAMED = 10


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
        listed: Path as a table gives it: relative to the root, or absolute below it, by whatever name it calls the
            root; either slash.

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
    is_absolute = PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive)
    if is_absolute or ".." in text.split("/"):
        below = _below(root, text, is_absolute)
        if below is None and is_absolute:
            msg = f"{listed!r} is outside the root {root}"
            raise ValueError(msg)
        text = text if below is None else below
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


def _below(root: Path, text: str, is_absolute: bool) -> str | None:
    """What follows the root in a path, by whatever name it calls the root: by a link, or by a way round."""
    for base in (root, root.absolute()):
        prefix = f"{base.as_posix().rstrip('/')}/"
        if text.startswith(prefix) and ".." not in text[len(prefix) :].split("/"):
            return text[len(prefix) :]
    path = Path(text) if is_absolute else root.absolute() / text
    if not path.is_absolute() or len(text) > _LONGEST_PATH:
        return None
    for folder in path.parents:
        try:
            if folder.samefile(root):
                return path.relative_to(folder).as_posix()
        except (OSError, ValueError):  # no such folder, or no name that this system can have
            continue
    return None


def find_bare(root: Path, listed: Sequence[str], candidates: Callable[[], Iterable[str]], table: Path) -> list[str]:
    """Find listed file names that say no folder, and are not in the root itself, in the folders below.

    Args:
        root: Folder of the data set.
        listed: Paths below the root, with forward slashes.
        candidates: Gives the paths that may be meant; asked for only if there are such names.
        table: The table, for the message.

    Returns:
        The paths; names that are found nowhere stay as they are.

    Raises:
        TableError: If a name is that of several files.
    """
    bare = set(find_missing(root, [path for path in listed if "/" not in path]))
    if not bare:
        return list(listed)
    found: dict[str, str] = {}
    for path in sorted(candidates()):
        name = path.rpartition("/")[2]
        if name in bare:
            if name in found:
                msg = (
                    f"{table}: {name} is the name of several files below {root}, such as {found[name]} and {path}: "
                    "list paths instead of names, or give the folder of masks as mask_dir"
                )
                raise TableError(msg)
            found[name] = path
    return [found.get(path, path) for path in listed]


def images_by_stem(root: Path, folder: str) -> dict[str, str]:
    """List the images right in a folder by their names without suffix; of two of one name, DICOM comes first.

    Args:
        root: Folder of the data set.
        folder: Folder below it, "" for the root itself.

    Returns:
        Path below the root of each.
    """
    prefix = f"{folder}/" if folder else ""
    files: dict[str, str] = {}
    for name in sorted(os.listdir(root / folder)):  # noqa: PTH208 - names are all that is needed
        stem, dot, suffix = name.rpartition(".")
        if dot and f".{suffix.lower()}" in RADIOGRAPH_SUFFIXES:
            files.setdefault(stem, prefix + name)
    return files


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


def name_first(paths: Iterable[str]) -> str:
    """Name the first ten of many paths, in their order as text."""
    named = sorted(paths)
    return ", ".join(named[:_NAMED]) + (", ..." if len(named) > _NAMED else "")
