"""RSNA Pneumonia Detection Challenge: 26,684 chest X-rays with boxes around opacities (Shih et al. 2019; RSNA terms).

Layout::

    root/
    ├── stage_2_train_labels.csv           one row a box: patientId, x, y, width, height, Target
    ├── stage_2_detailed_class_info.csv    Normal / No Lung Opacity / Not Normal / Lung Opacity, repeated a box
    ├── stage_2_train_images/<patientId>.dcm, or converted to PNG or JPEG
    └── pneumonia-challenge-dataset-mappings_2018.json    optional: which NIH image each one is

What the tables are like: ``patientId`` is an image. The images come from NIH ChestX-ray14, which has several a patient,
so only the published mapping makes splits safe by patient. Boxes are in pixels of the original 1024 x 1024 images. Some
copies of the class table lack patients.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.base import default_num_workers
from anomalib_cxr.data.files import images_by_stem
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL, shrink_counts, split_by_counts
from anomalib_cxr.data.table_datamodule import TableDataModule, compare_splits, find_table, locate_table
from anomalib_cxr.data.tables import TableError, parse_numbers, read_table, refuse_duplicates

logger = logging.getLogger(__name__)

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
SIDE = 1024
"""Side of the original images, in whose pixels the boxes are given."""

_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
_FOLDERS = ("stage_2_train_images", "train_images", "images")
_PRESET = {"test": {NORMAL: 300, ABNORMAL: 300}, "val": {NORMAL: 300, ABNORMAL: 300}, "train": {NORMAL: 6614}}


Preset = Literal["anatpaste"]


class RSNA(TableDataModule):
    """RSNA pneumonia set with its boxes as ground-truth masks.

    Normal is the class "Normal", abnormal the class "Lung Opacity". The third class, abnormal without an opacity, has
    no boxes: it is left out, or with ``include_not_normal`` counts as abnormal, and then there are no masks. An image
    that the class table lacks is abnormal if it has boxes, else left out. ``findings`` holds the class of the abnormal.

    Preset ``anatpaste`` (Sato et al., iScience 2023): PA images, 6,614 normals to train, 300 normal + 300 abnormal each
    for validation and test, drawn by patient. Which images they drew is not published, so the draw is ours. Where a
    copy has fewer images, the counts shrink in proportion, and the log says so.

    Args:
        root: Folder with the tables and the images.
        views: Values of ``ViewPosition`` to keep (PA, AP), or None for all.
        headers: CSV file with ``PatientID`` (or ``patientId``) and ``ViewPosition``, relative to the root or the
            working directory. ``None``: the views are read from the headers of the DICOM files.
        mapping: The published mapping to NIH images, JSON, found likewise. ``None``: looked for in the root under its
            published name.
        include_not_normal: Count "No Lung Opacity / Not Normal" as abnormal.
        preset: ``anatpaste`` or None.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.
    """

    split_settings: ClassVar[tuple[str, ...]] = ("views", "include_not_normal", "patient_safe")

    def __init__(
        self,
        root: str | Path = "./datasets/rsna",
        views: Sequence[str] | None = None,
        headers: str | Path | None = None,
        mapping: str | Path | None = None,
        include_not_normal: bool = False,
        preset: Preset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.preset = check_choice("preset", preset, Preset | None)
        if preset is not None and views is None:
            views = ("PA",)
        self.views = [views] if isinstance(views, str) else list(views) if views is not None else None
        if preset is not None and (self.views != ["PA"] or self.fold is not None):
            msg = f"RSNA: preset {preset} fixes the split of PA images, drop views and fold"
            raise ValueError(msg)
        self.headers = Path(headers) if headers is not None else None
        self.mapping = Path(mapping) if mapping is not None else None
        self.include_not_normal = include_not_normal
        self.patient_safe = False

    def load_table(self) -> pd.DataFrame:
        """Join boxes, classes, files and patients: one row an image.

        Returns:
            Table of all images of the label table.

        Raises:
            TableError: If a table is broken: a column missing, a box that is none, a row repeated, an image in two
                classes or with boxes that contradict its class.
        """
        boxes = self._read_boxes(find_table(self.root, ["stage_2_train_labels.csv"], self.name))
        classes = self._read_classes(find_table(self.root, ["stage_2_detailed_class_info.csv"], self.name))
        table = pd.DataFrame({"image_id": list(boxes), "boxes": list(boxes.values()), "mask_path": ""})
        listed = table["image_id"].map(classes)
        lacking = listed.isna()
        if lacking.any():
            with_boxes = lacking & table["boxes"].map(bool)
            logger.info(
                "RSNA: %d images are not in the class table: %d with boxes are abnormal, the others are left out",
                lacking.sum(),
                with_boxes.sum(),
            )
            listed = listed.mask(with_boxes, "Lung Opacity").fillna("")
        opaque = listed == "Lung Opacity"
        contradicting = table["image_id"][(opaque != table["boxes"].map(bool)) & (listed != "")]
        if len(contradicting):
            msg = (
                f"RSNA: {len(contradicting)} images of class 'Lung Opacity' have no box, or others have one, the first "
                f"is {contradicting.iloc[0]}: the class table and the label table do not belong together"
            )
            raise TableError(msg)
        strangers = len(set(classes) - set(boxes))
        if strangers:
            logger.warning("RSNA: %d images of the class table are not in the label table and ignored", strangers)
        words = {"Normal": NORMAL, "Lung Opacity": ABNORMAL}
        if self.include_not_normal:
            words[_CLASSES[1]] = ABNORMAL
            table = table.drop(columns="boxes")
            logger.info("RSNA: abnormal images without boxes are included, so there are no masks")
        table["label"] = listed.map(words).fillna("")
        table["findings"] = listed.where(table["label"] == ABNORMAL, "")
        table["image_path"] = self._locate(table["image_id"])
        table["patient_id"] = self._patients_of(table["image_id"])
        return table

    def select(self, selection: Selection) -> None:
        """Filter by class, then by view.

        Args:
            selection: The table.
        """
        selection.keep(selection.table["label"] != "", "class Normal or abnormal")
        if self.views is None:
            return
        if self.headers is None:
            self.keep_existing(selection)  # a file that is not there tells no view either
            view = self._views_in_files(selection.table["image_path"])
        else:
            view = self._views_in_table(selection.table["image_id"], locate_table(self.root, self.headers))
        unknown = int((view == "").sum())
        if unknown:
            logger.warning("RSNA: %d of %d images tell no view and are left out", unknown, len(view))
        selection.keep(view.isin(self.views), f"view {' or '.join(self.views)}")

    def split_preset(self, table: pd.DataFrame) -> pd.Series:
        """Draw the published numbers of images by patient.

        Args:
            table: The filtered table.

        Returns:
            Split of each row, "" where not used.
        """
        split = split_by_counts(table, shrink_counts(table, _PRESET), self.seed)
        compare_splits(self.name, str(self.preset), table, split, _PRESET)
        return split

    def _read_boxes(self, path: Path) -> dict[str, tuple[tuple[float, float, float, float], ...]]:
        """Collect the boxes of each image, in fractions of it, in the order of the table."""
        columns = ["x", "y", "width", "height"]
        rows = read_table(path, ["patientId", *columns, "Target"])
        numbers = pd.DataFrame({column: parse_numbers(rows[column], path) for column in columns})
        target = parse_numbers(rows["Target"], path)
        has_box = numbers.notna().all(axis=1)
        wrong = (target == 1) != has_box
        wrong |= ~target.isin([0, 1]) | (numbers.notna().any(axis=1) & ~has_box)
        wrong |= has_box & ((numbers[["width", "height"]] <= 0).any(axis=1) | (numbers[["x", "y"]] < 0).any(axis=1))
        wrong |= has_box & ((numbers["x"] + numbers["width"] > SIDE) | (numbers["y"] + numbers["height"] > SIDE))
        wrong |= rows["patientId"].str.fullmatch(r"[\w-]+") == False  # noqa: E712
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            msg = (
                f"{path}: {int(wrong.sum())} rows are no image id with Target 0, or with Target 1 and a box inside "
                f"{SIDE} x {SIDE} pixels; the first is data row {row + 1}: {rows.iloc[row].to_dict()}"
            )
            raise TableError(msg)
        repeated = rows.duplicated() | (rows["patientId"].duplicated(keep=False) & ~has_box)
        if repeated.any():
            row = int(repeated.to_numpy().argmax())
            msg = (
                f"{path}: {int(repeated.sum())} rows repeat a box, or an image without boxes has other rows too; the "
                f"first is data row {row + 1}: {rows.iloc[row].to_dict()}"
            )
            raise TableError(msg)
        boxes: dict[str, tuple[tuple[float, float, float, float], ...]] = {}
        for image, present, x, y, width, height in zip(
            rows["patientId"], has_box, *(numbers[column] / SIDE for column in columns), strict=True
        ):
            boxes[image] = boxes.get(image, ()) + (((x, y, width, height),) if present else ())
        return boxes

    def _read_classes(self, path: Path) -> dict[str, str]:
        """Class of each image; rows repeat a box, but must agree."""
        rows = read_table(path, ["patientId", "class"]).drop_duplicates()
        unknown = sorted(set(rows["class"]) - set(_CLASSES))
        if unknown:
            msg = f"{path}: unknown classes {unknown[:5]}, there are {list(_CLASSES)}"
            raise TableError(msg)
        twice = rows["patientId"][rows["patientId"].duplicated()]
        if len(twice):
            msg = f"{path}: {len(twice)} images have two classes, the first is {twice.iloc[0]}"
            raise TableError(msg)
        return dict(zip(rows["patientId"], rows["class"], strict=True))

    def _locate(self, image_ids: Iterable[str]) -> list[str]:
        """Path of each image below the root, by one look at the folder; DICOM before a converted copy."""
        folder = next((name for name in _FOLDERS if (self.root / name).is_dir()), "")
        files = images_by_stem(self.root, folder)
        return [files.get(image, f"{folder}/{image}.dcm".lstrip("/")) for image in image_ids]

    def _patients_of(self, image_ids: pd.Series) -> pd.Series:
        """Patient of each image by the published mapping; without it each image counts as a patient."""
        path = locate_table(self.root, self.mapping) if self.mapping else self.root / MAPPING
        if not path.is_file():
            if self.mapping is not None:
                msg = f"RSNA: the mapping {path} does not exist"
                raise TableError(msg)
            logger.warning(
                "RSNA: without %s in the root, images count as patients: splits are NOT safe by patient", MAPPING
            )
            return "image " + image_ids
        patients = read_mapping(path)
        found = image_ids.map(patients)
        lacking = found.isna()
        if lacking.any():
            logger.warning("RSNA: the mapping lacks %d images, each counts as a patient of its own", lacking.sum())
        self.patient_safe = not lacking.any()
        return found.mask(lacking, "image " + image_ids)

    def _views_in_table(self, image_ids: pd.Series, path: Path) -> pd.Series:
        """View of each image by a table of headers, "" where it has none."""
        rows = read_table(path, ["ViewPosition"], ["patientId", "PatientID"])
        key = next((column for column in ("patientId", "PatientID") if column in rows.columns), None)
        if key is None:
            msg = f"{path} lacks the column 'PatientID'"
            raise TableError(msg)
        rows = rows[[key, "ViewPosition"]].drop_duplicates()
        refuse_duplicates(rows[key], path)
        views = dict(zip(rows[key], rows["ViewPosition"].str.strip(), strict=True))
        return image_ids.map(views).fillna("")

    def _views_in_files(self, paths: pd.Series) -> pd.Series:
        """View of each image by its own header, "" where it has none; unreadable files as ``on_error`` says."""
        with ThreadPoolExecutor(default_num_workers()) as pool:
            found = list(pool.map(_read_view, [self.root / path for path in paths]))
        for path, (_, reason) in zip(paths, found, strict=True):
            if reason is None:
                continue
            if self.on_error == "raise":
                msg = f"RSNA: {self.root / path}: {reason}; replace the file or pass on_error='skip'"
                raise TableError(msg)
            self.skipped[str(self.root / path)] = reason
            self._gone.add(path)
            logger.warning("RSNA: skipped %s: %s", self.root / path, reason)
        return pd.Series([view for view, _ in found], index=paths.index)


def read_mapping(path: Path) -> dict[str, str]:
    """Read the published mapping from RSNA images to NIH ChestX-ray14 images, whose names begin with the patient.

    Args:
        path: JSON file: a list of objects with ``subset_img_id`` and ``img_id`` such as "00013249_031.png".

    Returns:
        NIH patient of each RSNA image.

    Raises:
        TableError: If the file is not of that form.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        pairs = {(str(entry["subset_img_id"]), str(entry["img_id"]).partition("_")[0]) for entry in entries}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        msg = f"{path} is not the published mapping, a JSON list of objects with subset_img_id and img_id: {error!r}"
        raise TableError(msg) from error
    patients = {image: f"nih {patient}" for image, patient in pairs}
    if len(patients) < len(pairs):
        msg = f"{path} gives {len(pairs) - len(patients)} images another patient a second time"
        raise TableError(msg)
    return patients


def _read_view(path: Path) -> tuple[str, str | None]:
    """ViewPosition of a DICOM file, "" where there is none, and the reason why its header cannot be read or None."""
    if path.suffix.lower() not in {".dcm", ".dicom"}:
        return "", None
    try:
        import pydicom
    except ImportError as error:
        msg = "RSNA: reading views from DICOM files needs pydicom: pip install 'anomalib-cxr[dicom]', or give headers"
        raise TableError(msg) from error
    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["Rows", "ViewPosition"])
    except Exception as error:  # noqa: BLE001 - whatever a broken file makes the parser stumble over
        return "", f"its DICOM header cannot be read: {' '.join(str(error).split())}"
    if not header.get("Rows"):
        return "", "its DICOM header cannot be read: it states no Rows"
    return str(header.get("ViewPosition", "")).strip(), None
