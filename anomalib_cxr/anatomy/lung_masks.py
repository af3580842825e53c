"""Lung masks of a whole training set, computed once and kept as bits."""

import hashlib
import json
import logging
import multiprocessing
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize

from anomalib_cxr.anatomy.lung_segmentation import (
    MIN_SIDE,
    SEGMENTATION_VERSION,
    LungMethod,
    LungQuality,
    segment_lungs_with_quality,
)
from anomalib_cxr.checks import check_choice
from anomalib_cxr.cores import available_cores
from anomalib_cxr.devices import on_device
from anomalib_cxr.files import written_atomically
from anomalib_cxr.imaging import RadiographError, read_radiograph
from anomalib_cxr.imaging.progress import progress as show_progress

logger = logging.getLogger(__name__)

_CHUNK = 8  # images a task of a worker
_FEW_IMAGES = 64  # fewer are not worth starting workers for
_MAX_WORKERS = 8


@dataclass(frozen=True, eq=False)
class LungMasks:
    """Lung masks of many images at one size, looked up by path.

    A snapshot: a file that changes after :meth:`compute` keeps its mask until the next :meth:`compute`.

    Attributes:
        size: Height and width of the masks.
        method: Method asked for, see :func:`~anomalib_cxr.anatomy.segment_lungs`.
        paths: Absolute paths, one a mask.
        packed: Masks as bits, shape (N, ceil(H * W / 8)), uint8.
        quality: What each mask looks like.

    Example:
        >>> masks = LungMasks.compute(paths, size=(256, 256))  # doctest: +SKIP
        >>> masks.lookup(batch.image_path).shape  # doctest: +SKIP
        torch.Size([32, 1, 256, 256])
    """

    size: tuple[int, int]
    method: LungMethod
    paths: tuple[str, ...]
    packed: NDArray[np.uint8]
    quality: tuple[LungQuality, ...]
    _rows: dict[str, int] = field(init=False, repr=False)
    _kept: dict[torch.device, torch.Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {path: row for row, path in enumerate(self.paths)})

    @classmethod
    def compute(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        size: tuple[int, int],
        method: LungMethod = "shape",
        bits: Sequence[int | None] | None = None,
        num_workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> "LungMasks":
        """Segment the lungs of every image, as a model with this input size sees it.

        Images are read by :func:`~anomalib_cxr.imaging.read_radiograph` and resized with antialiasing, as torchvision's
        ``Resize`` does. The result does not depend on the number of workers and leaves torch's random state alone.

        Args:
            paths: Image files; a path that comes twice is segmented once.
            size: Height and width of the masks, at least 16.
            method: ``"shape"`` or ``"otsu"``, see :func:`~anomalib_cxr.anatomy.segment_lungs`.
            bits: Stored depth of each image as :func:`~anomalib_cxr.imaging.read_radiograph` takes it, None where the
                file tells; None for all.
            num_workers: Worker processes; 0 stays in this process, None takes up to 8, or none for a few images.
            cache_dir: Folder that keeps masks between runs, or None. Masks there are found by the content of the image
                file, so a changed file is segmented anew. Several processes may share it. Damaged files are replaced.
            progress: Show a progress bar.

        Returns:
            The masks.

        Raises:
            ValueError: If there are no paths, if size, method or num_workers is out of range, if there are not as many
                ``bits`` as paths or two for one path.
            RadiographError: If images cannot be read; the message names the first of them.
        """
        check_choice("method", method, LungMethod)
        height, width = size
        if min(height, width) < MIN_SIDE:
            msg = f"Lung masks need a size of at least {MIN_SIDE}×{MIN_SIDE}, got {height}×{width}."
            raise ValueError(msg)
        depths = _depths([_absolute(path) for path in paths], bits)
        unique = tuple(depths)
        if not unique:
            msg = "Lung masks need at least one image, got no paths."
            raise ValueError(msg)
        cache = None if cache_dir is None else Path(cache_dir)
        segmentation = _Segmentation(unique, tuple(depths.values()), (height, width), method, cache)

        packed = np.empty((len(unique), -(-height * width // 8)), dtype=np.uint8)
        quality: list[LungQuality] = []
        failed: list[str] = []
        damaged = 0
        results = segmentation.run(_worker_count(num_workers, len(unique)))
        for row, result in enumerate(show_progress(results, "Segmenting lungs", len(unique), shown=progress)):
            if isinstance(result, str):
                failed.append(result)
            else:
                packed[row] = result.packed
                quality.append(result.quality)
                damaged += result.replaced
        if failed:
            msg = f"{len(failed)} of {len(unique)} images have no lung mask, the first because {failed[0]}"
            raise RadiographError(msg)
        if damaged:
            logger.warning("%d damaged lung masks in %s were segmented anew.", damaged, cache)
        return cls((height, width), method, unique, packed, tuple(quality))

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
                msg = f"No lung mask for {path}: it was not among the {len(self)} images given to LungMasks.compute."
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
        fallbacks = Counter(quality.fallback_used for quality in self.quality if quality.fallback_used)
        listed = ", ".join(f"{name} in {count}" for name, count in sorted(fallbacks.items())) or "none"
        two = np.mean([quality.components == 2 for quality in self.quality])
        symmetry = np.array([quality.symmetry for quality in self.quality])
        typical, lopsided = np.median(symmetry), (symmetry < 0.5).sum()
        border = sum(quality.border_contact for quality in self.quality)
        area = np.mean([quality.area_fraction for quality in self.quality])
        return (
            f"Lung masks of {len(self)} images at {self.size[0]}×{self.size[1]} by method '{self.method}': "
            f"mean area {area:.1%} of the image, two components in {two:.1%}, median symmetry {typical:.2f} "
            f"({lopsided} below 0.5), {border} touch the border, fallbacks used: {listed}."
        )


@dataclass(frozen=True)
class _Result:
    packed: NDArray[np.uint8]
    quality: LungQuality
    replaced: bool


class _Segmentation(Dataset):
    """The masks of a list of files, or for a file that cannot be read, the reason."""

    def __init__(
        self,
        paths: tuple[str, ...],
        bits: tuple[int | None, ...],
        size: tuple[int, int],
        method: LungMethod,
        cache: Path | None,
    ) -> None:
        self.paths = paths
        self.bits = bits
        self.size = size
        self.method = method
        self.cache = cache

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> _Result | str:
        path, bits = Path(self.paths[index]), self.bits[index]
        try:
            if self.cache is None:
                return self._segment(path, bits)
            stored = self.cache / f"{self._key(path, bits)}.npz"
            existed = stored.exists()
            kept = _load(stored, self.size) if existed else None
            if kept is not None:
                return kept
            result = self._segment(path, bits, replaced=existed)
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

    def _segment(self, path: Path, bits: int | None, replaced: bool = False) -> _Result:
        image = torch.from_numpy(read_radiograph(path, bits=bits))[None]
        image = resize(image, list(self.size), antialias=True)[0].clamp(0, 1)
        mask, quality = segment_lungs_with_quality(image.numpy(), self.method)
        return _Result(np.packbits(mask), quality, replaced)

    def _key(self, path: Path, bits: int | None) -> str:
        """Name of a mask: what the file holds and how it is read and segmented."""
        try:
            digest = hashlib.sha256(path.read_bytes())
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise RadiographError(msg) from error
        settings = [path.suffix.lower(), self.size, self.method, SEGMENTATION_VERSION]
        digest.update(json.dumps(settings if bits is None else [*settings, bits]).encode())
        return digest.hexdigest()


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - resolve() would ask the disk for links, at every lookup


def _depths(paths: Sequence[str], bits: Sequence[int | None] | None) -> dict[str, int | None]:
    """Stored depth of each distinct path."""
    if bits is not None and len(bits) != len(paths):
        msg = f"Lung masks need a stored depth for each path, got {len(bits)} for {len(paths)}."
        raise ValueError(msg)
    depths: dict[str, int | None] = {}
    for path, depth in zip(paths, bits or [None] * len(paths), strict=True):
        if depths.setdefault(path, depth) != depth:
            msg = f"Lung masks got two stored depths for {path}, {depths[path]} and {depth}."
            raise ValueError(msg)
    return depths


def _load(stored: Path, size: tuple[int, int]) -> _Result | None:
    """Return a stored mask, or None where the file is damaged."""
    try:
        with np.load(stored, allow_pickle=False) as data:
            packed, quality = data["packed"], LungQuality(**json.loads(str(data["quality"])))
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
