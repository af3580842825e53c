"""ZhangLab: paediatric chest X-rays with and without pneumonia (Kermany et al., Cell 2018, CC BY 4.0).

Layout as published (doi 10.17632/rscbjbr9sj)::

    root/
    ├── train/{NORMAL,PNEUMONIA}/*.jpeg    1349 + 3883 images
    ├── test/{NORMAL,PNEUMONIA}/*.jpeg      234 +  390
    └── val/{NORMAL,PNEUMONIA}/*.jpeg      only in some copies: 8 + 8 images taken from train, joined to it again

The patient is in the file name: ``person123_bacteria_45.jpeg``, ``IM-0115-0001.jpeg``,
``NORMAL2-IM-0383-0001.jpeg``. Numbers occur in train and in test alike (25 of the first 500 training persons do), and
nothing says whether they are the same children. Patient ids therefore carry the official part
(``train/person123``), and validation is drawn from those training patients whose number does not occur in the test
set, so that no child is in both even if the numbering is one.

Nor does anything say whether ``IM-0115`` and ``NORMAL2-IM-0115`` are one child. By default they are two
(``patient_rule="name"``). If they are one, children are in several parts: of the 1,349 training normals, the test set's
234 (a half of them known to us) and the default draw, 26 numbers are in training and validation, 46 in training and
test, 5 in validation and test. ``patient_rule="number"`` takes them for one child, in train and test too, and leaves no
number in two parts.
"""

import logging
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.files import scan_images
from anomalib_cxr.data.splits import ABNORMAL, LABELS, NORMAL, draw_patients, split_by_fold
from anomalib_cxr.data.table_datamodule import TableDataModule, compare_splits

logger = logging.getLogger(__name__)

CLASSES = {"NORMAL": NORMAL, "PNEUMONIA": ABNORMAL}
PUBLISHED = {"train": {NORMAL: 1349, ABNORMAL: 3883}, "test": {NORMAL: 234, ABNORMAL: 390}}
_PATIENT = re.compile(r"person\d+|(?:NORMAL2-)?IM-\d+", re.IGNORECASE)
_NUMBER = re.compile(r"(?:NORMAL2-)?(person|IM-)0*(\d+)", re.IGNORECASE)

PatientRule = Literal["name", "number"]
_FINDING = re.compile(r"_(bacteria|virus)_", re.IGNORECASE)


class ZhangLab(TableDataModule):
    """ZhangLab pneumonia set: official test set, training on the official training normals.

    Validation is drawn from the official training set by patient and seed, as in AnatPaste (Sato et al. 2022): 100
    normal and 100 pneumonia images. A patient whose images would overshoot is passed over. The pneumonia images that
    are left are not used. ``findings`` is "bacteria" or "virus".

    With ``fold``, training and test set are pooled, and images of one name stay together whichever set they are from.

    Args:
        root: Folder with ``train`` and ``test``.
        val_per_class: Validation images of each class.
        patient_rule: Which names are one child. ``name``: equal ones within train or test, so ``IM-0115`` and
            ``NORMAL2-IM-0115`` are two. ``number``, the strict one: equal numbers of ``IM-n`` and ``NORMAL2-IM-n``, or
            of ``person<n>``, in train and test alike; training images whose number is in the test set are not used.
        **kwargs: Subset, split and loader arguments, see :class:`TableDataModule`; ``val_ratio`` and ``test_ratio``
            have no effect.

    Examples:
        >>> data = ZhangLab(root="datasets/zhanglab")  # doctest: +SKIP
        >>> data.samples.groupby(["split", "label"]).size()  # doctest: +SKIP
    """

    split_settings: ClassVar[tuple[str, ...]] = ("val_per_class", "patient_rule")

    def __init__(
        self,
        root: str | Path = "./datasets/zhanglab",
        val_per_class: int = 100,
        patient_rule: PatientRule = "name",
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.patient_rule = check_choice("patient_rule", patient_rule, PatientRule)
        if val_per_class < 1:
            msg = f"ZhangLab: val_per_class must be at least 1, got {val_per_class}"
            raise ValueError(msg)
        self.val_per_class = val_per_class

    def load_table(self) -> pd.DataFrame:
        """List the folders.

        Returns:
            Table of all images; ``part`` is "train" or "test".

        Raises:
            FileNotFoundError: If a class folder is missing.
            ValueError: If a class folder holds no image.
        """
        _check_layout(self.root)
        parts = [_list_class(self.root, part, name) for name in CLASSES for part in ("train", "test")]
        if (self.root / "val").is_dir():
            parts += [_list_class(self.root, "val", name, optional=True) for name in CLASSES]
        table = pd.DataFrame([row for rows in parts for row in rows])
        compare_splits(self.name, "official", table, table["part"], PUBLISHED)
        if self.patient_rule == "number":
            return table
        return table.assign(patient_id=table["part"] + "/" + table["known_as"])

    def make_splits(self, table: pd.DataFrame) -> pd.Series:
        """Take the official test set and draw the validation patients, or split by fold.

        Args:
            table: The table.

        Returns:
            "train", "val", "test" or "" (not used) for each row.

        Raises:
            ValueError: If the draw leaves no normal image for training.
        """
        child = table["patient_id" if self.patient_rule == "number" else "known_as"]
        if self.fold is not None:
            return split_by_fold(table.assign(patient_id=child), self.fold, self.num_folds, self.seed)
        split = table["part"].copy()
        in_train = split == "train"
        in_both = in_train & child.isin(set(child[~in_train]))
        candidates = table[in_train & ~in_both]
        drawn = draw_patients(candidates, dict.fromkeys(LABELS, self.val_per_class), self.seed)
        split[in_train & table["patient_id"].isin(drawn)] = "val"
        for label in LABELS:
            number = int(((split == "val") & (table["label"] == label)).sum())
            if number != self.val_per_class:
                logger.warning("ZhangLab: validation has %d of %d %s images", number, self.val_per_class, label)
        if not ((split == "train") & (table["label"] == NORMAL)).any():
            msg = (
                f"ZhangLab: the {int((in_train & (table['label'] == NORMAL)).sum())} normal images of "
                f"{self.root / 'train'} are too few to take {self.val_per_class} for validation, lower val_per_class"
            )
            raise ValueError(msg)
        unused = (split == "train") & (table["label"] == ABNORMAL)
        logger.info("ZhangLab: %d pneumonia images of the official training set are not used", int(unused.sum()))
        if self.patient_rule == "number":
            in_both &= ~unused
            logger.info("ZhangLab: %d training images whose number is in the test set are not used", in_both.sum())
            unused |= in_both
        return split.mask(unused, "")


def _check_layout(root: Path) -> None:
    """Refuse a root that lacks train or test, and say so if they are one folder further down."""
    missing = [part for part in ("train", "test") if not (root / part).is_dir()]
    if missing:
        below = sorted(path.parent.name for path in root.glob("*/train") if (path.parent / "test").is_dir())
        hint = f"; {root / below[0]} has them, give that" if below else ", give the folder that holds train and test"
        msg = f"ZhangLab: {root} has no folder {' nor '.join(missing)}{hint}"
        raise FileNotFoundError(msg)


def _list_class(root: Path, part: str, name: str, optional: bool = False) -> list[dict[str, str]]:
    """List one class folder. Rows of ``val`` belong to train."""
    folder = root / part / name
    if not folder.is_dir():
        if optional:
            logger.warning("ZhangLab: %s is missing, nothing is joined to train from it", folder)
            return []
        msg = f"ZhangLab: the class folder {folder} is missing"
        raise FileNotFoundError(msg)
    scan = scan_images(folder)
    if scan.ignored:
        logger.info("ZhangLab: %d files in %s are no images and ignored", scan.ignored, folder)
    if scan.loops:
        logger.warning("ZhangLab: %d folder links in %s lead to folders listed already", len(scan.loops), folder)
    if not scan.images and not optional:
        msg = f"ZhangLab: the class folder {folder} holds no images"
        raise ValueError(msg)
    official = "test" if part == "test" else "train"
    rows = []
    nameless = 0
    for relative in scan.images:
        file_name = relative.rpartition("/")[2]
        patient = _PATIENT.match(file_name)
        finding = _FINDING.search(file_name)
        nameless += patient is None
        known_as = patient[0] if patient else Path(file_name).stem
        rows.append(
            {
                "image_path": f"{part}/{name}/{relative}",
                "label": CLASSES[name],
                "part": official,
                "known_as": known_as,
                "patient_id": _number(known_as),
                "findings": finding[1].lower() if finding else "",
                "mask_path": "",
            }
        )
    if nameless:
        logger.warning("ZhangLab: %d names in %s hold no patient, each counts as its own", nameless, folder)
    return rows


def _number(known_as: str) -> str:
    """What ``IM-0115`` and ``NORMAL2-IM-0115`` share: ``im-115``."""
    found = _NUMBER.fullmatch(known_as)
    return f"{found[1].lower()}{found[2]}" if found else known_as
