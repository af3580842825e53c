"""Byte-identical files across splits."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path

import pandas as pd

_HEAD = 1 << 16


def find_duplicates(samples: pd.DataFrame) -> list[tuple[str, ...]]:
    """Find files with the same content in different splits.

    Files are compared by size first, then by their first 64 KiB, then whole, so that most are never opened.

    Args:
        samples: Table with ``image_path`` and ``split``.

    Returns:
        Groups of paths with the same content, sorted, each group in at least two splits. Files that cannot be opened
        are passed over: reading them will say why.
    """
    splits = dict(zip(samples["image_path"], samples["split"], strict=True))
    groups: list[list[str]] = [list(splits)]
    for key in (_size, _head, _content):
        groups = [part for group in groups for part in _parts(group, key) if len({splits[path] for path in part}) > 1]
    return sorted(tuple(sorted(group)) for group in groups)


def _parts(paths: Iterable[str], key: Callable[[str], object]) -> list[list[str]]:
    """Group paths by a key; those that cannot be opened drop out."""
    parts: dict[object, list[str]] = defaultdict(list)
    for path in paths:
        try:
            parts[key(path)].append(path)
        except OSError:
            continue
    return list(parts.values())


def _size(path: str) -> int:
    return Path(path).stat().st_size


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return blake2b(file.read(_HEAD)).digest()


def _content(path: str) -> bytes:
    digest = blake2b()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
