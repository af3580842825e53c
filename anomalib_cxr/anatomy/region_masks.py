"""Region masks of a whole training set, found once and kept as bits."""

import hashlib
import json
import logging
import multiprocessing
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from anomalib_cxr.anatomy.lung_segmentation import MIN_SIDE
from anomalib_cxr.anatomy.region_quality import RegionQuality
from anomalib_cxr.anatomy.regions import Film, Lungs, Region, shrunk
from anomalib_cxr.cores import available_cores
from anomalib_cxr.devices import on_device
from anomalib_cxr.files import written_atomically
from anomalib_cxr.imaging import FilmReader, RadiographError
from anomalib_cxr.imaging.progress import progress as show_progress

logger = logging.getLogger(__name__)

_CHUNK = 8  # images a task of a worker
_FEW_IMAGES = 64  # fewer are not worth starting workers for
_MAX_WORKERS = 8


@dataclass(frozen=True, eq=False)
class RegionMasks:
    """Regions of many images at one size, looked up by path.

    A snapshot: a file that changes after :meth:`compute` keeps its mask until the next :meth:`compute`.

    Attributes:
        size: Height and width of the masks.
        region: How they were found.
        paths: Absolute paths, one a mask.
        packed: Masks as bits, shape (N, ceil(H * W / 8)), uint8.
        quality: What each mask looks like.

    Examples:
        >>> masks = RegionMasks.compute(paths, size=(256, 256))  # doctest: +SKIP
        >>> masks.lookup(batch.image_path).shape  # doctest: +SKIP
        torch.Size([32, 1, 256, 256])
    """

    size: tuple[int, int]
    region: Region
    paths: tuple[str, ...]
    packed: NDArray[np.uint8]
    quality: tuple[RegionQuality, ...]
    _rows: dict[str, int] = field(init=False, repr=False)
    _kept: dict[torch.device, torch.Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {path: row for row, path in enumerate(self.paths)})

    @classmethod
    def compute(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        size: tuple[int, int],
        region: Region | None = None,
        bits: Sequence[int | None] | None = None,
        num_workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
        reader: FilmReader | None = None,
    ) -> "RegionMasks":
        """Find the region of every image, as a model with this input size sees it.

        Images are read by the ``reader`` and resized with antialiasing, as torchvision's
        ``Resize`` does. The result does not depend on the number of workers and leaves torch's random state alone.

        Args:
            paths: Image files; of a path that comes twice the region is found once.
            size: Height and width of the masks, at least 16.
            region: How to find it; None takes :class:`~anomalib_cxr.anatomy.Lungs`.
            bits: Stored depth of each image as :func:`~anomalib_cxr.imaging.read_radiograph` takes it, None where the
                file tells; None for all.
            num_workers: Worker processes; 0 stays in this process, None takes up to 8, or none for a few images.
            cache_dir: Folder that keeps masks between runs, or None; used for regions with a ``cache_key``. Masks there
                are looked up by the content of the image file, so a changed file's is found anew. Several processes may
                share it. Damaged files are replaced.
            progress: Show a progress bar.
            reader: Of images and masks; None reads radiographs. Masks by another one are not kept in ``cache_dir``.

        Returns:
            The masks.

        Raises:
            ValueError: If there are no paths, if size or num_workers is out of range, if there are not as many
                ``bits`` as paths or two for one path.
            RadiographError: If images cannot be read or have no region; the message names the first of them.
        """
        region = Lungs() if region is None else region
        height, width = size
        if min(height, width) < MIN_SIDE:
            msg = f"Region masks need a size of at least {MIN_SIDE}×{MIN_SIDE}, got {height}×{width}."
            raise ValueError(msg)
        depths = _depths([_absolute(path) for path in paths], bits)
        unique = tuple(depths)
        if not unique:
            msg = "Region masks need at least one image, got no paths."
            raise ValueError(msg)
        cache = None if cache_dir is None or region.cache_key is None or reader else Path(cache_dir)
        search = _Search(unique, tuple(depths.values()), (height, width), region, cache, reader or FilmReader())

        packed = np.empty((len(unique), -(-height * width // 8)), dtype=np.uint8)
        quality: list[RegionQuality] = []
        failed: list[str] = []
        damaged = 0
        results = search.run(_worker_count(num_workers, len(unique)))
        for row, result in enumerate(show_progress(results, f"Finding {region.kind}s", len(unique), shown=progress)):
            if isinstance(result, str):
                failed.append(result)
            else:
                packed[row] = result.packed
                quality.append(result.quality)
                damaged += result.replaced
        if failed:
            msg = f"{len(failed)} of {len(unique)} images have no {region.kind} mask, the first because {failed[0]}"
            raise RadiographError(msg)
        if damaged:
            logger.warning("%d damaged %s masks in %s were made anew.", damaged, region.kind, cache)
        return cls((height, width), region, unique, packed, tuple(quality))

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return _absolute(path) in self._rows

    def lookup(self, paths: Sequence[str | os.PathLike[str]], device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the masks of some images.

        Args:
            paths: B paths given to :meth:`compute`.
            device: Where the masks are wanted. The bits of all are kept there after the first time, so that nothing
                waits for a copy.

        Returns:
            Bool tensor of shape (B, 1, H, W) on the device.

        Raises:
            KeyError: If a path was not given to :meth:`compute`.
        """
        rows = []
        for path in paths:
            row = self._rows.get(_absolute(path))
            if row is None:
                msg = f"No region for {path}: it was not among the {len(self)} images given to RegionMasks.compute."
                raise KeyError(msg)
            rows.append(row)
        height, width = self.size
        device = torch.device(device)
        if device.type == "cpu":
            bits = np.unpackbits(self.packed[rows], axis=1, count=height * width)
            return torch.from_numpy(bits.view(bool).reshape(-1, 1, height, width))
        if device not in self._kept:
            self._kept[device] = torch.from_numpy(self.packed).to(device)
        chosen = self._kept[device].index_select(0, on_device(torch.tensor(rows), device))
        place = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
        return (chosen[:, :, None] >> place & 1).bool().flatten(1)[:, : height * width].view(-1, 1, height, width)

    def summary(self) -> str:
        """Return one sentence for the log: how many masks there are and how many of them look odd."""
        area = np.mean([quality.area_fraction for quality in self.quality])
        return (
            f"{self.region.kind.capitalize()} masks of {len(self)} images at {self.size[0]}×{self.size[1]} by "
            f"{self.region}: mean area {area:.1%} of the image, {self.region.details(self.quality)}."
        )


@dataclass(frozen=True)
class _Result:
    packed: NDArray[np.uint8]
    quality: RegionQuality
    replaced: bool


class _Search(Dataset):
    """The masks of a list of files, or for a file that cannot be read, the reason."""

    def __init__(
        self,
        paths: tuple[str, ...],
        bits: tuple[int | None, ...],
        size: tuple[int, int],
        region: Region,
        cache: Path | None,
        reader: FilmReader,
    ) -> None:
        self.paths = paths
        self.bits = bits
        self.size = size
        self.region = region
        self.cache = cache
        self.reader = reader

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> _Result | str:
        path, bits = Path(self.paths[index]), self.bits[index]
        try:
            if self.cache is None:
                return self._find(path, bits)
            stored = self.cache / f"{self._key(path, bits)}.npz"
            existed = stored.exists()
            kept = _load(stored, self.size) if existed else None
            if kept is not None:
                return kept
            result = self._find(path, bits, replaced=existed)
        except RadiographError as error:
            return str(error)
        _store(stored, result)
        return result

    def run(self, num_workers: int) -> Iterator[_Result | str]:
        """Go through all files in order, in this process or in others."""
        loader = DataLoader(
            self,
            batch_size=_CHUNK if num_workers else 1,
            num_workers=num_workers,
            collate_fn=list,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # its seeds would come from the global generator otherwise
        )
        for chunk in loader:
            yield from chunk

    def _find(self, path: Path, bits: int | None, replaced: bool = False) -> _Result:
        pixels = self.reader.read(path, bits)
        mask, quality = self.region.find(Film(str(path), pixels, shrunk(pixels, self.size), self.reader))
        return _Result(np.packbits(mask), quality, replaced)

    def _key(self, path: Path, bits: int | None) -> str:
        """Name of a mask: what the file holds, how it is read and how the region is found."""
        try:
            digest = hashlib.sha256(path.read_bytes())
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise RadiographError(msg) from error
        settings = [path.suffix.lower(), self.size, *(self.region.cache_key or ())]
        digest.update(json.dumps(settings if bits is None else [*settings, bits]).encode())
        return digest.hexdigest()


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would ask the disk for links, at every lookup


def _depths(paths: Sequence[str], bits: Sequence[int | None] | None) -> dict[str, int | None]:
    """Stored depth of each distinct path."""
    if bits is not None and len(bits) != len(paths):
        msg = f"Region masks need a stored depth for each path, got {len(bits)} for {len(paths)}."
        raise ValueError(msg)
    depths: dict[str, int | None] = {}
    for path, depth in zip(paths, bits or [None] * len(paths), strict=True):
        if depths.setdefault(path, depth) != depth:
            msg = f"Region masks got two stored depths for {path}, {depths[path]} and {depth}."
            raise ValueError(msg)
    return depths


def _load(stored: Path, size: tuple[int, int]) -> _Result | None:
    """Return a stored mask, or None where the file is damaged."""
    try:
        with np.load(stored, allow_pickle=False) as data:
            packed, quality = data["packed"], RegionQuality(**json.loads(str(data["quality"])))
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile):
        return None
    whole = packed.dtype == np.uint8 and packed.shape == (-(-size[0] * size[1] // 8),)
    return _Result(packed, quality, replaced=False) if whole else None


def _store(stored: Path, result: _Result) -> None:
    """Write a mask under its name in one go, so that no reader sees half of it."""
    with written_atomically(stored) as temporary, temporary.open("wb") as file:
        np.savez(file, packed=result.packed, quality=json.dumps(asdict(result.quality)))


def _start_worker(worker: int) -> None:
    del worker
    cv2.setNumThreads(0)  # one core a worker, and OpenCV's thread pool does not survive a fork


def _worker_count(asked: int | None, images: int) -> int:
    if asked is not None:
        if asked < 0:
            msg = f"num_workers must be 0 or more, or None, got {asked}."
            raise ValueError(msg)
        return min(asked, images)
    if images < _FEW_IMAGES or multiprocessing.current_process().daemon:
        return 0
    cores = available_cores()
    return min(cores, _MAX_WORKERS) if cores > 1 else 0
