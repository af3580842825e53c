"""Anyone's own radiographs: listed in a CSV file, or sorted into folders.

CSV::

    root/
    ├── images.csv      image_path,label[,patient_id,split,findings,mask_path,bits]
    └── ...             images of any format that read_radiograph reads

Folders, with or without the level of the split::

    root/
    ├── train/normal/...
    ├── val/{normal,abnormal}/...
    └── test/{normal,abnormal}/...
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_cxr.data.files import inside, scan_images
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL
from anomalib_cxr.data.table_datamodule import TableDataModule, locate_table, name_first
from anomalib_cxr.data.tables import TableError, is_missing, parse_depths, read_table, refuse_duplicates

logger = logging.getLogger(__name__)

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class RadiographTable(TableDataModule):
    """Own data, from a CSV file or from folders of normal and abnormal images.

    Labels and splits are compared without regard to case. Without a split, patients are split by ``val_ratio`` and
    ``test_ratio``; with one, it is taken as it is, and abnormal training images are not used. Without a patient each
    image is a patient of its own, which the log says.

    Args:
        root: Folder that holds all images.
        table: CSV file, relative to the root or to the working directory. ``None``: the folders are the labels.
        image_column: Column of paths relative to the root.
        label_column: Column of labels.
        patient_column: Column of patient ids.
        split_column: Column of splits: train, val (valid, validation) or test.
        findings_column: Column of findings, joined by "|".
        mask_column: Column of mask paths relative to the root, empty for normal images.
        bits_column: Column of stored bit depths.
        normal_values: Labels, or folder names, of normal images.
        abnormal_values: Labels, or folder names, of abnormal images.
        patient_pattern: Regular expression found in the image path, whose first group (or whole match) is the patient.
        mask_dir: Folder of masks below the root, for folders: ``test/abnormal/a.png`` has its mask in
            ``<mask_dir>/test/abnormal/a.png``, whatever the suffix.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        table: str | Path | None = None,
        image_column: str = "image_path",
        label_column: str = "label",
        patient_column: str = "patient_id",
        split_column: str = "split",
        findings_column: str = "findings",
        mask_column: str = "mask_path",
        bits_column: str = "bits",
        normal_values: Sequence[str] = ("normal", "0", "0.0"),
        abnormal_values: Sequence[str] = ("abnormal", "1", "1.0"),
        patient_pattern: str | None = None,
        mask_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.table = Path(table) if table is not None else None
        self.columns = {
            "image_path": image_column,
            "label": label_column,
            "patient_id": patient_column,
            "split": split_column,
            "findings": findings_column,
            "mask_path": mask_column,
            "bits": bits_column,
        }
        self.labels = {value.strip().lower(): NORMAL for value in normal_values}
        both = [value for value in abnormal_values if value.strip().lower() in self.labels]
        if both:
            msg = f"RadiographTable: {both} are in normal_values and in abnormal_values"
            raise ValueError(msg)
        self.labels |= {value.strip().lower(): ABNORMAL for value in abnormal_values}
        try:
            self.patient_pattern = re.compile(patient_pattern) if patient_pattern else None
        except re.error as error:
            msg = f"RadiographTable: patient_pattern {patient_pattern!r} is no regular expression: {error}"
            raise ValueError(msg) from error
        self.mask_dir = mask_dir

    def load_table(self) -> pd.DataFrame:
        """Read the CSV file or the folders.

        Returns:
            Table of all images.

        Raises:
            TableError: If the file is broken, a label or split unknown, a path repeated or outside the root.
        """
        table = self._load_folders() if self.table is None else self._load_csv(self.table)
        if self.patient_pattern is not None:
            found = [self.patient_pattern.search(path) for path in table["image_path"]]
            table["patient_id"] = [match[1 if match.re.groups else 0] if match else "" for match in found]
        unknown = is_missing(table["patient_id"].fillna(""))
        if unknown.any():
            logger.warning(
                "RadiographTable: %d of %d images have no patient and count as a patient of their own: if patients "
                "have several, they may be in several splits",
                unknown.sum(),
                len(table),
            )
            table["patient_id"] = table["patient_id"].mask(unknown, "image " + table["image_path"])
        return table

    def select(self, selection: Selection) -> None:
        """Keep all images.

        Args:
            selection: The table.
        """

    def _load_csv(self, listed: Path) -> pd.DataFrame:
        """Read the CSV file. Columns of other than the default names must exist."""
        path = locate_table(self.root, listed)
        defaults = {"patient_id", "split", "findings", "mask_path", "bits"}
        required = [name for key, name in self.columns.items() if name != key or key not in defaults]
        optional = [name for name in self.columns.values() if name not in required]
        rows = read_table(path, required, optional)
        rows = rows.rename(columns={name: key for key, name in self.columns.items()})
        table = pd.DataFrame({"image_path": self._paths(rows["image_path"], path)})
        refuse_duplicates(table["image_path"], path)
        table["label"] = self._translate(rows["label"], self.labels, path, "normal_values and abnormal_values")
        table["patient_id"] = rows["patient_id"].str.strip() if "patient_id" in rows else ""
        table["findings"] = rows["findings"].str.strip() if "findings" in rows else ""
        table["mask_path"] = self._paths(rows["mask_path"], path, optional=True) if "mask_path" in rows else ""
        if "bits" in rows:
            table["bits"] = parse_depths(rows["bits"], path)
        if "split" in rows and not is_missing(rows["split"]).all():
            table["split"] = self._translate(rows["split"], _SPLITS, path, "train, val or test")
        return table

    def _paths(self, listed: pd.Series, path: Path, optional: bool = False) -> list[str]:
        """Bring listed paths below the root."""
        paths = []
        for row, value in enumerate(listed, start=1):
            if optional and not value.strip():
                paths.append("")
                continue
            try:
                paths.append(inside(self.root, value.strip()))
            except ValueError as error:
                msg = f"{path}, data row {row}: {error}"
                raise TableError(msg) from error
        return paths

    def _translate(self, values: pd.Series, words: dict[str, str], path: Path, fix: str) -> pd.Series:
        """Translate a column of words, and refuse those that are not known."""
        translated = values.str.strip().str.lower().map(words)
        unknown = values[translated.isna()]
        if len(unknown):
            shown = [word[:40] for word in unknown.unique()[:5]]
            msg = f"{path}: {len(unknown)} values of column '{values.name}' are unknown, such as {shown}; use {fix}"
            raise TableError(msg)
        return translated

    def _load_folders(self) -> pd.DataFrame:
        """List the folders: the names on the way to an image are its label and split."""
        scan = scan_images(self.root)
        masks: dict[str, str] = {}
        rows = []
        unlabelled: Counter[str] = Counter()
        prefix = f"{self.mask_dir.strip('/')}/" if self.mask_dir else None
        for image in scan.images:
            if prefix is not None and image.startswith(prefix):
                masks[_stem(image[len(prefix) :])] = image
                continue
            folders = [part.lower() for part in image.split("/")[:-1]]
            labels = {self.labels[part] for part in folders if part in self.labels}
            splits = {_SPLITS[part] for part in folders if part in _SPLITS}
            if len(labels) > 1 or len(splits) > 1:
                msg = f"RadiographTable: {self.root / image} lies in folders of several labels or splits"
                raise TableError(msg)
            if not labels:
                unlabelled[image.rpartition("/")[0] or "."] += 1
                continue
            rows.append((image, labels.pop(), splits.pop() if splits else ""))
        for what, number in (
            ("files are no images", scan.ignored),
            ("folders are hidden", len(scan.hidden)),
            ("folder links lead to folders listed already", len(scan.loops)),
        ):
            if number:
                logger.info("RadiographTable: %d %s and are ignored", number, what)
        if not rows:
            others = [folder for folder, _ in unlabelled.most_common(5)]
            msg = (
                f"RadiographTable: {self.root} has no images in folders named {sorted(self.labels)}, but in {others}: "
                "name the folders in normal_values and abnormal_values"
            )
            raise TableError(msg)
        if unlabelled:
            logger.warning("RadiographTable: images in folders without a label are not used: %s", dict(unlabelled))
        table = pd.DataFrame(rows, columns=["image_path", "label", "split"])
        if (table["split"] == "").all():
            table = table.drop(columns="split")
        elif (table["split"] == "").any():
            first = table["image_path"][table["split"] == ""].iloc[0]
            msg = f"RadiographTable: {self.root / first} lies in no folder of a split while others do"
            raise TableError(msg)
        stems = [_stem(image) for image in table["image_path"]]
        strangers = sorted(set(masks) - set(stems))
        if strangers:
            logger.warning("RadiographTable: %d masks are of no image: %s", len(strangers), name_first(strangers))
        table["mask_path"] = [masks.get(stem, "") for stem in stems]
        return table.assign(patient_id="", findings="")


def _stem(path: str) -> str:
    """Path without its suffix."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{name.rpartition('.')[0]}"
