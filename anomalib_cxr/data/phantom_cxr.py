"""PhantomCXR: drawn chest radiographs with lesion masks, made on this machine instead of downloaded.

See :mod:`anomalib_cxr.data.phantom` for how a film is drawn. A set is drawn once into a folder of its own below the
root, named by its settings::

    root/
    └── 256x256_seed0_3f9c0a12/            size, seed, digest of all settings and of the renderer's version
        ├── images/train_normal_0000000.png    12-bit grey in 16-bit PNG, as PadChest has it
        ├── masks/test_nodule_0000000.png      8 bits, 255 in the lesion; normal films have none
        └── samples.csv                        written last, for people and other tools

A film depends on its seed, split, label and number alone: the test set stays the same when only ``num_train`` changes.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from anomalib_cxr.csv_tables import write_table
from anomalib_cxr.data.base import RadiographDataModule
from anomalib_cxr.data.phantom import LESIONS, RENDERER_VERSION, check_kinds, check_size, render_phantom
from anomalib_cxr.data.splits import ABNORMAL, NORMAL, SPLITS
from anomalib_cxr.files import write_bytes
from anomalib_cxr.imaging.progress import progress

logger = logging.getLogger(__name__)

BITS = 12
"""Stored depth of the films."""

_PATIENTS_PER_GROUP = 10_000_000  # room for each split and label, so that no patient is in two
# Run-length coding over upward differences: as small as zlib's level 1 for grainy films, in less than half the time.
_IMAGE_CODING = (
    cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP,
)  # fmt: skip


@dataclass(frozen=True)
class _Film:
    """One film to draw."""

    split: str
    label: str
    number: int
    patient: int
    kind: str | None

    @property
    def file_name(self) -> str:
        return f"{self.split}_{self.kind or NORMAL}_{self.number:07d}.png"


class PhantomCXR(RadiographDataModule):
    """Drawn chest radiographs: normal ones for training, normal and abnormal ones for validation and test.

    Every film is another patient. The lesion kinds take turns, so that each has its equal share. ``findings`` is the
    kind of lesion; the task is segmentation.

    Args:
        root: Folder of the drawn sets; made where it does not exist.
        image_size: Side of the films in pixels, or (height, width).
        num_train: Normal training films.
        val_per_class: Normal, and as many abnormal, validation films.
        test_per_class: Normal, and as many abnormal, test films.
        kinds: Kinds of lesion, out of :data:`anomalib_cxr.data.phantom.LESIONS`; None takes all.
        **kwargs: Batch sizes, workers and augmentations, see :class:`RadiographDataModule`; ``seed`` is the seed of
            the patients.

    Raises:
        ValueError: If a size, count, kind or the seed is impossible.

    Examples:
        >>> data = PhantomCXR(image_size=128, num_train=300, kinds=["nodule", "effusion"])  # doctest: +SKIP
        >>> data.samples.groupby(["split", "findings"]).size()  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | Path = "./datasets/PhantomCXR",
        image_size: int | tuple[int, int] = 256,
        num_train: int = 500,
        val_per_class: int = 50,
        test_per_class: int = 100,
        kinds: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.image_size = check_size(image_size)
        self.kinds = LESIONS if kinds is None else tuple(kinds)
        self.counts = {"train": num_train, "val": val_per_class, "test": test_per_class}
        for name, count in zip(("num_train", "val_per_class", "test_per_class"), self.counts.values(), strict=True):
            if not 1 <= count < _PATIENTS_PER_GROUP:
                msg = f"PhantomCXR: {name} must be from 1 to {_PATIENTS_PER_GROUP - 1}, got {count}"
                raise ValueError(msg)
        if self.seed < 0:
            msg = f"PhantomCXR: seed must not be negative, got {self.seed}"
            raise ValueError(msg)
        if isinstance(kinds, str) or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            msg = f"PhantomCXR: kinds must list different lesions, at least one of {', '.join(LESIONS)}, got {kinds!r}"
            raise ValueError(msg)
        check_kinds(self.kinds)

    @property
    def folder(self) -> Path:
        """Folder of this set below the root."""
        settings = {
            "renderer": RENDERER_VERSION,
            "image_size": self.image_size,
            "counts": self.counts,
            "kinds": self.kinds,
            "seed": self.seed,
        }
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        height, width = self.image_size
        return self.root / f"{height}x{width}_seed{self.seed}_{digest}"

    def prepare_data(self) -> None:
        """Draw the films that are not there yet.

        Files appear under their names only when they are whole, and what another process has drawn is taken as it is:
        a run that was killed goes on where it stopped, and two runs at once make the same set.

        Raises:
            OSError: If the folder cannot be written.
        """
        films = list(self._films())
        missing = self._missing(films)
        table = self.folder / "samples.csv"
        if not missing and table.is_file():
            return
        if self.root.is_file():
            msg = f"PhantomCXR: the root {self.root} is a file, give a folder"
            raise NotADirectoryError(msg)
        try:
            for name in ("images", "masks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            for film in progress(missing, f"Drawing {self.folder.name}", unit="film"):
                self._draw(film)
            write_table(table, self._table(films, Path()))
        except OSError as error:
            msg = f"PhantomCXR: cannot draw into {self.folder} ({error.strerror or error}), give a root to write to"
            raise OSError(msg) from error

    def make_samples(self) -> pd.DataFrame:
        """Draw what is missing and list the films.

        Returns:
            The samples table, with the extra columns ``bits`` (12) and ``patient`` (number that
            :func:`~anomalib_cxr.data.phantom.render_phantom` takes as ``index``).

        Raises:
            OSError: If the folder cannot be written.
        """
        self.prepare_data()
        return self._table(list(self._films()), self.folder)

    def _films(self) -> Iterator[_Film]:
        """Every film of the set, in a fixed order."""
        groups = [(split, label) for split in SPLITS for label in (NORMAL, ABNORMAL)]
        for group, (split, label) in enumerate(groups):
            if (split, label) == ("train", ABNORMAL):
                continue
            for number in range(self.counts[split]):
                kind = self.kinds[number % len(self.kinds)] if label == ABNORMAL else None
                yield _Film(split, label, number, group * _PATIENTS_PER_GROUP + number, kind)

    def _missing(self, films: list[_Film]) -> list[_Film]:
        """The films whose image or mask is not in the folder, by one listing of each."""
        images, masks = (_names(self.folder / name) for name in ("images", "masks"))
        return [film for film in films if film.file_name not in images or (film.kind and film.file_name not in masks)]

    def _draw(self, film: _Film) -> None:
        phantom = render_phantom(self.image_size, self.seed, film.patient, film.kind)
        pixels = np.round(phantom.image * ((1 << BITS) - 1)).astype(np.uint16)
        if film.kind:
            write_bytes(self.folder / "masks" / film.file_name, _png(phantom.mask.astype(np.uint8) * 255))
        write_bytes(self.folder / "images" / film.file_name, _png(pixels))

    def _table(self, films: list[_Film], folder: Path) -> pd.DataFrame:
        rows = [
            {
                "image_path": str(folder / "images" / film.file_name),
                "label": film.label,
                "split": film.split,
                "patient_id": f"phantom{film.patient:08d}",
                "findings": film.kind or "",
                "mask_path": str(folder / "masks" / film.file_name) if film.kind else "",
                "bits": BITS,
                "patient": film.patient,
            }
            for film in films
        ]
        return pd.DataFrame(rows)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _png(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> bytes:
    return cv2.imencode(".png", pixels, _IMAGE_CODING)[1].tobytes()
