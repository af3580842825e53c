"""NLM's tuberculosis sets: Montgomery County, 138 films, and Shenzhen, 662 (Jaeger et al. 2014; free with citation).

Layout as distributed; the root is one of the two folders, or the one above both::

    root/
    ├── MontgomerySet/
    │   ├── CXR_png/MCUCXR_0001_0.png            80 normal (_0), 58 with tuberculosis (_1)
    │   ├── ClinicalReadings/MCUCXR_0001_0.txt   sex, age and reading
    │   └── ManualMask/{leftMask,rightMask}/MCUCXR_0001_0.png
    └── ChinaSet_AllFiles/
        ├── CXR_png/CHNCXR_0001_0.png            326 normal, 336 with tuberculosis
        ├── ClinicalReadings/CHNCXR_0001_0.txt
        └── mask/CHNCXR_0001_0_mask.png          made later by others, of 566 films

What the files are like: the label is in the name. Readings are a few free lines: ``Patient's Sex: F``, ``Patient's Age:
027Y`` and the finding in one set, ``male 45yrs`` and the finding in the other, where some say ``femal 32yrs``,
``female24yrs``, ``male 16month``, ``64days`` or no unit. A film has a number, but some are of one patient all the same:
only the finding says so ("same pt as MCUCXR_0162_1"). ``CXR_png`` also holds files that are no images. The masks are of
lungs, not of lesions.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.files import images_by_stem
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL
from anomalib_cxr.data.table_datamodule import TableDataModule, compare_counts
from anomalib_cxr.data.tables import TableError
from anomalib_cxr.imaging import RadiographError
from anomalib_cxr.imaging.mask import read_mask

logger = logging.getLogger(__name__)

IMAGES = "CXR_png"
READINGS = "ClinicalReadings"
LUNGS = ("ManualMask/leftMask", "ManualMask/rightMask", "mask")
"""Folders of lung masks: one of each lung, or of both in one file."""

ADULT = 18
"""Age in years from which on a patient is an adult (ours)."""

_NAME = re.compile(r"(([A-Z]+CXR)_[0-9]+)_([01])")
_PUBLISHED = {"MCUCXR": {NORMAL: 80, ABNORMAL: 58}, "CHNCXR": {NORMAL: 326, ABNORMAL: 336}}
_AGE = re.compile(r"([0-9]{1,3})\s*(y|mo|w|d)?", re.IGNORECASE)
_YEARS = {"": 1.0, "y": 1.0, "mo": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}
_ABOUT = re.compile(r"\W*(patient'?s (sex|age)|sex\b|age\b|male|femal)", re.IGNORECASE)
_OTHER = re.compile(r"[A-Z]+CXR_[0-9]+")
_LONGEST = 10_000

Patients = Literal["adults", "all"]


class Reading(NamedTuple):
    """What a clinical reading says.

    Attributes:
        age: Years, None where it says none.
        finding: The lines that tell neither sex nor age, in one.
        same: Other films that the finding names, as those of the same patient.
    """

    age: float | None
    finding: str
    same: tuple[str, ...] = ()


class NLMTB(TableDataModule):
    """Films of Montgomery County and Shenzhen, with and without tuberculosis.

    Each film counts as a patient, but those whose readings name one another are of one. ``findings`` is what the
    reading of an abnormal film says. There are no masks of lesions; those of the lungs are read by :meth:`read_lungs`.

    Args:
        root: Folder of one set, or the one above both.
        patients: ``adults`` by the age in the readings, or ``all``. Adults are asked for by default, and films whose
            reading says no age are then left out with a count.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.
    """

    split_settings: ClassVar[tuple[str, ...]] = ("patients",)

    def __init__(
        self,
        root: str | Path = "./datasets/nlm-tb",
        patients: Patients = "adults",
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.patients = check_choice("patients", patients, Patients)

    def load_table(self) -> pd.DataFrame:
        """List the films and read what is said of them.

        Returns:
            Table of all films; ``age`` is in years, NaN where unknown, ``lungs`` holds the full paths of lung masks.

        Raises:
            TableError: If there is no folder of films, a film is in two sets, or adults are asked for without readings.
        """
        below = sorted(path.parent.name for path in self.root.glob(f"*/{IMAGES}") if path.is_dir())
        folders = [""] if (self.root / IMAGES).is_dir() else [f"{folder}/" for folder in below]
        if not folders:
            msg = f"NLMTB: neither {self.root} nor a folder in it has a folder {IMAGES}, give the one of a set"
            raise TableError(msg)
        rows: dict[str, dict[str, Any]] = {}
        same: dict[str, tuple[str, ...]] = {}
        for folder in folders:
            for number, film, others in self._list_set(folder):
                other = rows.setdefault(number, film)
                if other is not film:
                    both = f"{other['image_path']} and {film['image_path']}"
                    msg = f"NLMTB: {both} below {self.root} are film {number} both, remove one"
                    raise TableError(msg)
                same[number] = others
        patients = _join(same)
        for number, film in rows.items():
            film["patient_id"] = patients[number]
        if not rows:
            msg = f"NLMTB: {self.root} has no films named as MCUCXR_0001_0.png or CHNCXR_0001_1.png in {IMAGES}"
            raise TableError(msg)
        table = pd.DataFrame(list(rows.values()))
        for series, published in _PUBLISHED.items():
            found = table["label"][table["patient_id"].str.startswith(series)].value_counts().to_dict()
            if found:
                compare_counts(self.name, series, {str(label): number for label, number in found.items()}, published)
        if self.patients == "adults" and table["age"].isna().all():
            msg = f"NLMTB: no file of {READINGS} below {self.root} tells an age: complete them or pass patients='all'"
            raise TableError(msg)
        return table.assign(mask_path="")

    def select(self, selection: Selection) -> None:
        """Filter by age.

        Args:
            selection: The table.
        """
        if self.patients == "adults":
            age = selection.table["age"]
            if age.isna().any():
                logger.warning("NLMTB: %d films tell no age and are left out", int(age.isna().sum()))
            selection.keep(age >= ADULT, "adults")

    def read_lungs(self, image_path: str) -> npt.NDArray[np.uint8] | None:
        """Read the lung masks of a film, drawn by hand, as one.

        Args:
            image_path: Path as the samples have it.

        Returns:
            (H, W) of 0 and 1; None where there are none.

        Raises:
            RadiographError: If a mask cannot be read, or those of the two lungs differ in size.
        """
        samples = self.samples.set_index("image_path")
        masks = [read_mask(path).mask for path in samples["lungs"][image_path]]
        if not masks:
            return None
        if len({mask.shape for mask in masks}) > 1:
            msg = f"{image_path}: the masks of its lungs differ in size, {[mask.shape for mask in masks]}"
            raise RadiographError(msg)
        return np.bitwise_or.reduce(masks)

    def _list_set(self, folder: str) -> list[tuple[str, dict[str, Any], tuple[str, ...]]]:
        """Films of one set by number, with their readings and lung masks, and the films that the readings name."""
        lungs = [images_by_stem(self.root, f"{folder}{name}") for name in LUNGS if (self.root / folder / name).is_dir()]
        films = []
        strange = []
        for stem, path in images_by_stem(self.root, f"{folder}{IMAGES}").items():
            name = _NAME.fullmatch(stem)
            if name is None:
                strange.append(path)
                continue
            reading = self._read(self.root / folder / READINGS / f"{stem}.txt")
            found = [masks.get(stem) or masks.get(f"{stem}_mask") for masks in lungs]
            film = {
                "image_path": path,
                "label": (NORMAL, ABNORMAL)[int(name[3])],
                "findings": reading.finding if name[3] == "1" else "",
                "age": float("nan") if reading.age is None else reading.age,
                "lungs": tuple(str(self.root / mask) for mask in found if mask),
            }
            films.append((name[1], film, reading.same))
        if strange:
            logger.warning("NLMTB: %d images are named as no film of the set, such as %s", len(strange), strange[0])
        return films

    def _read(self, path: Path) -> Reading:
        """Reading of a film, an empty one where there is no file."""
        try:
            with path.open("rb") as file:
                return parse_reading(file.read(_LONGEST))
        except FileNotFoundError:
            return Reading(None, "")
        except OSError as error:
            msg = f"NLMTB: the reading {path} cannot be read: {error}"
            raise TableError(msg) from error


def parse_reading(content: bytes) -> Reading:
    """Parse a clinical reading.

    Args:
        content: The file: UTF-8, or Latin-1 where it is none.

    Returns:
        What it says: the age is the first number in a line about the patient, in years unless it has another unit;
        the finding is all other lines, joined by blanks.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    age = None
    kept = []
    for line in text.replace("\0", " ").splitlines():
        if not _ABOUT.match(line):
            kept.append(line)
            continue
        found = _AGE.search(line)
        if found and age is None:
            age = int(found[1]) * _YEARS[(found[2] or "").lower()]
    finding = " ".join(" ".join(kept).replace("|", "/").split())
    return Reading(age, finding, tuple(_OTHER.findall(finding)))


def _join(same: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Patient of each film: the first of all films that name one another, directly or by others between them."""
    patients = {film: film for film in same}
    for film, others in same.items():
        for other in others:
            if other in patients:
                joined = sorted((patients[film], patients[other]))
                patients = {name: joined[0] if patient in joined else patient for name, patient in patients.items()}
    return patients
