"""Texts that others may read name no folder of the machine that they were written on."""

import re
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

# Folders of an absolute path inside a longer text; not those of a web address.
_NAME = r"[^\s'\"\\/,;()<>]+"
_FOLDERS = re.compile(rf"(?<![\w./\\])(?:[A-Za-z]:[\\/]+(?:{_NAME}[\\/]+)+|~?/(?:{_NAME}/+)+)")


def without_folders(value: Any) -> Any:
    """Keep the last part of absolute paths.

    Args:
        value: Text, path, or a list, tuple or mapping of these; anything else comes back as it is.

    Returns:
        ``…/name`` for an absolute path; a longer text with the folders of the paths in it taken away.

    Examples:
        >>> without_folders(["/data/chest films", "relative/films", "see /data/films/a.png or http://a.b/c/d"])
        ['…/chest films', 'relative/films', 'see …/a.png or http://a.b/c/d']
        >>> without_folders("/data/films/a.png: it cannot be read")
        '…/a.png: it cannot be read'
    """
    if type(value) is dict:
        return {key: without_folders(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_folders(item) for item in value)
    if not isinstance(value, str | PurePath):
        return value
    text = str(value)
    if "\n" not in text and ": " not in text:  # a sentence may begin with a path, too
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(text)
            if path.is_absolute():
                return f"…/{path.name}"
    return _FOLDERS.sub("…/", text)
