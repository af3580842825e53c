"""A folder of decoded radiographs at the working size, so that the second epoch does not decode 8 MB files again.

An entry is keyed by the content of the file and by the settings that made it. So that reading does not need to hash the
file each time, a small pointer remembers the content key of a (path, size, modification time). Entries and pointers are
written atomically: any number of processes may use the folder at once, and one that is killed leaves at most a
temporary file, never half an entry. They end with a CRC-32 of their name and content: one that was changed, or stands
under another's name, is made again. (That guards against accidents: who may write there can put any picture there.)
"""

import json
import logging
import os
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from anomalib_cxr.checks import check_choice
from anomalib_cxr.cores import available_cores
from anomalib_cxr.files import write_bytes
from anomalib_cxr.imaging.progress import progress
from anomalib_cxr.imaging.radiograph import RadiographError, read_radiograph

logger = logging.getLogger(__name__)

Depth = Literal[8, 16]
"""Bits a pixel of the cache."""

_VERSION = 3  # raised where a reader gives other pixels for a file than it gave before, or entries look otherwise
_STALE_SECONDS = 3600.0


class ImageCache:
    """Radiographs at a fixed size, kept in a folder.

    An image is decoded at full size once, resized by antialiased bilinear interpolation (torchvision's Resize, so that
    the resize of a model with the same input size gives the same picture with and without a cache) and stored as plain
    integers, which load faster than any compressed format.

    Args:
        folder: Folder of the cache, made where it does not exist. Several data sets and sizes may share it.
        size: Height and width in pixels; one number for both. The aspect ratio of the file is not kept.
        depth: Bits a pixel, 16 (default; error at most 1/131070) or 8 (half the space, error at most 1/510).

    Raises:
        ValueError: If size or depth is not of that kind.

    Examples:
        >>> cache = ImageCache("cache", size=256)  # doctest: +SKIP
        >>> image = cache.read("chest.png")  # decoded and stored  # doctest: +SKIP
        >>> image = cache.read("chest.png")  # loaded  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, size: int | Sequence[int], depth: Depth = 16) -> None:
        self.depth: Depth = check_choice("depth", depth, Depth)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or min(sides) < 1:
            msg = f"size must be positive, one number or height and width, got {size}"
            raise ValueError(msg)
        self.folder = Path(folder)
        self.size = (int(sides[0]), int(sides[1]))
        self._dtype = np.dtype(np.uint8 if depth == 8 else "<u2")

    def read(self, path: str | os.PathLike[str], *, bits: int | None = None) -> npt.NDArray[np.float32]:
        """Read a radiograph from the cache, or decode and store it.

        Args:
            path: File of the radiograph.
            bits: Stored depth, as :func:`read_radiograph` takes it.

        Returns:
            (H, W) float32 in [0, 1] of the cache's size.

        Raises:
            RadiographError: If the radiograph cannot be read.
            OSError: If the cache cannot be written.
        """
        return self.read_with_shape(path, bits=bits)[0]

    def read_with_shape(
        self, path: str | os.PathLike[str], *, bits: int | None = None
    ) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
        """Read a radiograph, and say the size of its file, which a mask of it must have.

        Args:
            path: File of the radiograph.
            bits: Stored depth, as :func:`read_radiograph` takes it.

        Returns:
            (H, W) float32 in [0, 1] of the cache's size, and height and width of the file.

        Raises:
            RadiographError: If the radiograph cannot be read.
            OSError: If the cache cannot be written.
        """
        path = Path(path)
        pointer = self._pointer(path, bits)
        known = _load_pointer(pointer)
        if known is not None:
            pixels = self._load(known[0])
            if pixels is not None:
                return pixels, known[1]
        return self._store(path, bits, pointer)

    def prepare(
        self, paths: Iterable[str], bits: Iterable[int | None] | None = None, num_workers: int | None = None
    ) -> dict[str, str]:
        """Store all images that are not there yet, in parallel, with a progress bar.

        Also removes temporary files that killed processes left more than an hour ago.

        Args:
            paths: Files of radiographs.
            bits: Stored depth of each.
            num_workers: Threads; one a CPU core where None. Decoding and resizing run outside Python's lock.

        Returns:
            Reason for each path that cannot be read.

        Raises:
            OSError: If the cache cannot be written.
        """
        paths = [str(path) for path in paths]
        depths = [None] * len(paths) if bits is None else list(bits)
        self._sweep()

        def store(path: str, depth: int | None) -> tuple[str, str | None]:
            try:
                self.read(path, bits=depth)
            except RadiographError as error:
                return path, str(error)
            return path, None

        with ThreadPoolExecutor(num_workers or available_cores()) as pool:
            results = progress(pool.map(store, paths, depths), "Preparing images", len(paths))
            return {path: reason for path, reason in results if reason is not None}

    def _store(self, path: Path, bits: int | None, pointer: Path) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
        """Decode an image and keep it, or find it under another name."""
        try:
            content = blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except OSError:
            content = ""  # read_radiograph says what is wrong
        entry = self._entry(f"{content}|{self._settings(bits)}")
        twin = _load_pointer(entry.with_suffix(".json"))
        pixels = self._load(entry.name) if twin is not None else None
        if pixels is None or twin is None:
            image = read_radiograph(path, bits=bits)
            shape = (image.shape[0], image.shape[1])
            levels = 2**self.depth - 1
            resized = interpolate(torch.from_numpy(image)[None, None], self.size, mode="bilinear", antialias=True)
            whole = resized[0, 0].clamp(0, 1).mul(levels).round().numpy()
            kept = whole.astype(self._dtype)
            _write_checked(entry, kept.tobytes())
            twin = (entry.name, shape)
            _write_checked(entry.with_suffix(".json"), json.dumps(twin).encode())
            pixels = self._scale(kept)
        _write_checked(pointer, json.dumps(twin).encode())
        return pixels, twin[1]

    def _load(self, name: str) -> npt.NDArray[np.float32] | None:
        """Load an entry, None where it is not there or not as it was written."""
        data = _read_checked(self._path(name))
        if data is None or len(data) != self.size[0] * self.size[1] * self.depth // 8:
            return None
        return self._scale(np.frombuffer(data, dtype=self._dtype).reshape(self.size))

    def _scale(self, kept: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Bring stored integers to [0, 1]."""
        return np.multiply(kept, np.float32(1 / (2**self.depth - 1)), dtype=np.float32)

    def _settings(self, bits: int | None) -> str:
        return f"{_VERSION}|{self.size[0]}x{self.size[1]}|{self.depth}|{bits}"

    def _pointer(self, path: Path, bits: int | None) -> Path:
        """Pointer of a file as it is now."""
        try:
            status = path.stat()
            state = f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}"
        except OSError:
            state = f"{path.absolute()}|gone"
        return self._entry(f"{state}|{self._settings(bits)}").with_suffix(".ptr")

    def _entry(self, key: str) -> Path:
        return self._path(blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest())

    def _path(self, name: str) -> Path:
        """Files are spread over 256 folders."""
        return self.folder / name[:2] / name

    def _sweep(self) -> None:
        """Remove temporary files of processes that were killed."""
        oldest = time.time() - _STALE_SECONDS
        for stale in self.folder.glob("*/.*.tmp"):
            try:
                if stale.stat().st_mtime < oldest:
                    stale.unlink()
            except OSError:
                continue  # another process was first


def _load_pointer(path: Path) -> tuple[str, tuple[int, int]] | None:
    """Read a pointer: name of the entry, and size of the file it was made from."""
    data = _read_checked(path)
    if data is None:
        return None
    name, (height, width) = json.loads(bytes(data))
    return str(name), (int(height), int(width))


def _check(path: Path, content: bytes | memoryview) -> bytes:
    """Four bytes that are others for other content under the name, and for this under another name."""
    return zlib.crc32(content, zlib.crc32(path.name.encode())).to_bytes(4, "little")


def _write_checked(path: Path, content: bytes) -> None:
    write_bytes(path, content + _check(path, content))


def _read_checked(path: Path) -> memoryview | None:
    """Content of a file of :func:`_write_checked`; None where there is none, or it was changed."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    if data[-4:] != _check(path, data[:-4]):
        logger.warning("%s is damaged and made again", path)
        return None
    return data[:-4]
