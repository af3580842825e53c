"""Names for the pictures of many images, so that none overwrites another's on any file system."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePath

_LONGEST = 255  # bytes of a file name
_DIGITS = 12


def name_pictures(images: Sequence[str | Path], root: str | Path | None = None) -> list[str]:
    """Name the picture of each image by the image's path below the root: ``pat1/ser1/IM1.dcm.png`` (ours).

    A name gets ``.png`` unless it has it. Where two names would be one on some file system (letters that differ by
    case, or in how Unicode writes them), one would be another's folder, or one is longer than 255 bytes, a hash of the
    image's path comes in. Names do not depend on the order of the images.

    Args:
        images: Paths, each once.
        root: Folder of the data. Images outside of it are named below the folder that they share.

    Returns:
        Relative paths with forward slashes, in the order of the images.

    Examples:
        >>> name_pictures(["data/a/1.dcm", "data/b/1.png", "data/b/1.PNG"], "data")
        ['a/1.dcm.png', 'b/1.png', 'b/1.PNG.png']
        >>> name_pictures(["data/IM.dcm", "data/im.dcm"])
        ['IM.dcm~6b132b7cb8a6.png', 'im.dcm~b6e981a8e704.png']
    """
    places = below(images, root)
    wanted = [place if place.endswith(".png") else f"{place}.png" for place in places]
    times = Counter(map(same_file_key, wanted))
    folders = {same_file_key(str(folder)) for name in wanted for folder in PurePath(name).parents}
    return [
        name if times[key] == 1 and key not in folders and fits(PurePath(name).name) else with_hash(name, place)
        for name, place, key in zip(wanted, places, map(same_file_key, wanted), strict=True)
    ]


def below(images: Sequence[str | Path], root: str | Path | None = None) -> list[str]:
    """Write paths relative to the root; those outside of it to the folder that they share.

    Args:
        images: Paths.
        root: Folder, or None.

    Returns:
        Relative paths with forward slashes, without "..".
    """
    paths = [os.path.abspath(image) for image in images]  # noqa: PTH100  # Path.resolve would follow links
    inside = [_is_below(path, root) for path in paths]
    outside = [os.path.dirname(path) for path, is_in in zip(paths, inside, strict=True) if not is_in]  # noqa: PTH120
    shared = os.path.commonpath(outside) if outside else ""
    bases = [os.path.abspath(root) if is_in and root is not None else shared for is_in in inside]  # noqa: PTH100
    return [PurePath(path).relative_to(base).as_posix() for path, base in zip(paths, bases, strict=True)]


def with_hash(name: str, image: str) -> str:
    """Put a hash of the image's path into the name of its picture, and cut the name to what file systems take.

    Args:
        name: Path of the picture that is taken or too long, with its suffix.
        image: What tells this image from others.

    Returns:
        Path in the same folder.
    """
    path = PurePath(name)
    end = f"~{sha256(os.fsencode(image)).hexdigest()[:_DIGITS]}{path.suffix}"
    stem = os.fsencode(path.stem)[: _LONGEST - len(end)].decode("utf-8", "ignore")
    return path.with_name(stem + end).as_posix()


def fits(name: str) -> bool:
    """Whether file systems take a file name of this length."""
    return len(os.fsencode(name)) <= _LONGEST


def same_file_key(path: str) -> str:
    """Text that is equal for two paths which some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _is_below(path: str, root: str | Path | None) -> bool:
    return root is not None and PurePath(path).is_relative_to(os.path.abspath(root))  # noqa: PTH100
