"""Ways to find the region of an image that anomalies are pasted into: lungs, mask files, or any function."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import resize

from anomalib_cxr.anatomy.lung_outline import FloatArray
from anomalib_cxr.anatomy.lung_segmentation import SEGMENTATION_VERSION, LungMethod, segment_lungs_with_quality
from anomalib_cxr.anatomy.region_quality import RegionQuality, describe_mask
from anomalib_cxr.checks import check_choice
from anomalib_cxr.imaging import FilmReader, RadiographError


class Film(NamedTuple):
    """An image whose region is asked for.

    Attributes:
        path: Its file.
        stored: Its pixels as the file has them, (H, W) float32 in [0, 1].
        seen: The same at the size of the model, (h, w) float32 in [0, 1].
        reader: What has read it, and reads masks.
    """

    path: str
    stored: NDArray[np.float32]
    seen: NDArray[np.float32]
    reader: FilmReader


class Region(ABC):
    """A way to find the region of an image.

    Attributes:
        kind: One word for what is found, in messages.
        cache_key: What a mask depends on besides file and size, where masks may be kept between runs; else None.
    """

    kind: ClassVar[str] = "region"
    cache_key: tuple[Any, ...] | None = None

    @abstractmethod
    def find(self, film: Film) -> tuple[NDArray[np.bool_], RegionQuality]:
        """Find the region.

        Args:
            film: The image.

        Returns:
            Boolean mask of the shape of ``film.seen``, not empty, and what it looks like.

        Raises:
            RadiographError: If there is none; the message names the file.
        """

    @abstractmethod
    def __str__(self) -> str:
        """Say how regions are found, to follow "masks by"."""

    def details(self, quality: Sequence[RegionQuality]) -> str:
        """Say what the masks of a set look like, to follow their mean area."""
        areas = [one.area_fraction for one in quality]
        border = sum(one.border_contact for one in quality)
        return f"from {min(areas):.1%} to {max(areas):.1%}, {border} touch the border"


class Lungs(Region):
    """The lungs of frontal chest radiographs.

    Args:
        method: ``"shape"`` (ours) or ``"otsu"`` (the paper's), see :func:`~anomalib_cxr.anatomy.segment_lungs`.

    Raises:
        ValueError: If there is no such method.
    """

    kind = "lung"

    def __init__(self, method: LungMethod = "shape") -> None:
        self.method = check_choice("method", method, LungMethod)
        self.cache_key = (method, SEGMENTATION_VERSION)

    def find(self, film: Film) -> tuple[NDArray[np.bool_], RegionQuality]:
        """Segment the lungs; where there are none to be found the average outline stands for them."""
        return segment_lungs_with_quality(film.seen, self.method)

    def __str__(self) -> str:
        return f"method '{self.method}'"

    def details(self, quality: Sequence[RegionQuality]) -> str:
        """Say how many masks look odd for lungs."""
        fallbacks = Counter(one.fallback_used for one in quality if one.fallback_used)
        listed = ", ".join(f"{name} in {count}" for name, count in sorted(fallbacks.items())) or "none"
        two = np.mean([one.components == 2 for one in quality])
        symmetry = np.array([one.symmetry for one in quality])
        typical, lopsided = np.median(symmetry), (symmetry < 0.5).sum()
        border = sum(one.border_contact for one in quality)
        return (
            f"two components in {two:.1%}, median symmetry {typical:.2f} ({lopsided} below 0.5), {border} touch the "
            f"border, fallbacks used: {listed}"
        )


class MaskFiles(Region):
    """Regions that were drawn or segmented before, a file for each image.

    Args:
        masks: File of the mask of each image, "" where there is none; see :func:`~anomalib_cxr.imaging.read_mask`.
    """

    def __init__(self, masks: Mapping[str, str]) -> None:
        self.masks = {os.path.abspath(image): mask for image, mask in masks.items()}  # noqa: PTH100 - asks no disk

    def find(self, film: Film) -> tuple[NDArray[np.bool_], RegionQuality]:
        """Read the mask, and shrink it as the image is shrunk: a pixel is in by at least half of it."""
        path = self.masks.get(os.path.abspath(film.path), "")  # noqa: PTH100
        if not path:
            msg = f"no mask is listed for {film.path}"
            raise RadiographError(msg)
        mask = film.reader.read_mask(path).mask
        if mask.shape != film.stored.shape:
            msg = f"{path}: the mask is {mask.shape} but its image {Path(film.path).name} is {film.stored.shape}"
            raise RadiographError(msg)
        return _described(film, shrunk(mask, film.seen.shape) >= 0.5, path)

    def __str__(self) -> str:
        return "files"


class RegionFunction(Region):
    """Regions that a function finds; they are found anew for each training.

    Args:
        function: Takes an image (h, w) float32 in [0, 1] at the size of the model, and gives a boolean mask (h, w).
        name: What to call it in messages.
    """

    def __init__(self, function: Callable[[NDArray[np.float32]], Any], name: str) -> None:
        self.function = function
        self.name = name

    def find(self, film: Film) -> tuple[NDArray[np.bool_], RegionQuality]:
        """Call the function.

        Raises:
            TypeError: If it gives something else than a mask.
        """
        mask = np.asarray(self.function(film.seen.copy()))
        if mask.dtype != bool or mask.shape != film.seen.shape:
            msg = (
                f"{self.name} must give a bool mask {film.seen.shape} for an image {film.seen.shape}, but gave "
                f"{mask.dtype} {mask.shape} for {film.path}: threshold numbers first, for example `> 0.5`."
            )
            raise TypeError(msg)
        return _described(film, mask, film.path)

    def __str__(self) -> str:
        return self.name


def shrunk(pixels: FloatArray, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize with antialiasing, as torchvision's ``Resize`` does for a model.

    Args:
        pixels: (H, W) in [0, 1].
        size: Height and width wanted.

    Returns:
        float32 in [0, 1] of that size.
    """
    image = torch.from_numpy(np.asarray(pixels, np.float32))[None]
    return resize(image, list(size), antialias=True)[0].clamp(0, 1).numpy()


def _described(film: Film, mask: NDArray[np.bool_], path: str) -> tuple[NDArray[np.bool_], RegionQuality]:
    if not mask.any():
        msg = f"{path}: the region has no pixel at {mask.shape[0]}×{mask.shape[1]}"
        raise RadiographError(msg)
    return mask, describe_mask(film.seen, mask, None, None)
