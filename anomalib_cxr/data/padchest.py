"""PadChest: 160,861 chest X-rays of 67,625 patients (Bustos et al., Medical Image Analysis 2020; own research licence).

Layout::

    root/
    ├── PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]
    ├── 0/ ... 54/    16-bit PNG files in the numbered folders of ImageDir, or all flat in root or in root/images
    └── ...

What the table is like: ``Labels`` is a Python list written as text, with stray blanks and repeats, empty in 103 rows;
"normal" stands beside other labels in 232 rows; files hold 10 or 12 bits (``BitsStored_DICOM``) in 16; some cells say
"None"; several of the published files are truncated (``on_error="skip"`` finds and lists them).
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.files import inside
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL, assign_folds, draw_patients, patients_with_abnormal
from anomalib_cxr.data.table_datamodule import TableDataModule, compare_counts, find_table, locate_table
from anomalib_cxr.data.tables import TableError, is_missing, parse_depths, parse_labels, read_table, refuse_duplicates

logger = logging.getLogger(__name__)

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
UNINFORMATIVE = frozenset({"exclude", "suboptimal study", "unchanged"})
"""Labels that say neither normal nor abnormal (ours): rows with no other label are left out."""

_KIM2023 = {NORMAL: 2574, ABNORMAL: 4801}
_KIM2023_FOLDS = 5
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*")


LabelledBy = Literal["physician", "all"]
Patients = Literal["adults", "children", "all"]
DepthFrom = Literal["table", "file"]
Preset = Literal["kim2023"]


class PadChest(TableDataModule):
    """PadChest, by default the physician-labelled PA images of adults.

    An image is normal if "normal" is its only distinct label after trimming. It is abnormal if it has a label other
    than "normal" and :data:`UNINFORMATIVE`. The rest is left out with a count: no label at all, or nothing beside
    "unchanged", "exclude" or "suboptimal study". ``findings`` holds all labels but "normal".

    Preset ``kim2023`` (Kim, Moon, Lee, Sci. Rep. 2023): 2,574 normal and 4,801 abnormal physician-labelled PA images,
    drawn by patient; normals 70/15/15, abnormal images only in validation and test, half each; five folds, chosen by
    ``fold``, whose test sets of normals do not overlap. The paper does not list its images: the draw is ours. Its
    threshold, 0.5 on the normalised score, is the model's: ``threshold_rule="mid_range"`` of its post-processor, as
    in ``configs/multires_patch_ssl/padchest_paper.yaml``.

    Args:
        root: Folder with the table and the images.
        table: The table, relative to the root or the working directory, if it has not its published name.
        projections: Values of ``Projection`` to keep: PA, AP, AP_horizontal, L, COSTAL, EXCLUDE, UNK.
        labelled_by: ``physician``, or ``all`` for the labels predicted from reports as well.
        patients: ``adults``, ``children`` or ``all``.
        depth: Where the bit depth comes from: ``table`` (BitsStored_DICOM, right for the published 16-bit files) or
            ``file``, for copies that somebody converted, to 8 bits for instance.
        preset: ``kim2023`` or None.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.
    """

    split_settings: ClassVar[tuple[str, ...]] = ("projections", "labelled_by", "patients")

    def __init__(
        self,
        root: str | Path = "./datasets/padchest",
        table: str | Path | None = None,
        projections: Sequence[str] = ("PA",),
        labelled_by: LabelledBy = "physician",
        patients: Patients = "adults",
        depth: DepthFrom = "table",
        preset: Preset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.table = Path(table) if table is not None else None
        self.projections = [projections] if isinstance(projections, str) else list(projections)
        self.labelled_by = check_choice("labelled_by", labelled_by, LabelledBy)
        self.patients = check_choice("patients", patients, Patients)
        self.depth = check_choice("depth", depth, DepthFrom)
        self.preset = check_choice("preset", preset, Preset | None)
        if preset is not None and (self.projections != ["PA"] or labelled_by != "physician"):
            msg = f"PadChest: preset {preset} means PA images labelled by physicians, drop projections and labelled_by"
            raise ValueError(msg)
        if preset is not None and (self.num_folds != _KIM2023_FOLDS or (self.fold or 0) not in range(_KIM2023_FOLDS)):
            msg = (
                f"PadChest: preset {preset} has {_KIM2023_FOLDS} folds, numbered from 0, got fold {self.fold} of "
                f"{self.num_folds}"
            )
            raise ValueError(msg)

    def load_table(self) -> pd.DataFrame:
        """Read the table and label each image.

        Returns:
            Table of all listed images.

        Raises:
            TableError: If the table is broken: a column missing, an image listed twice, a cell that is no list, a bit
                depth that is no number, a path that leaves the root.
        """
        path = locate_table(self.root, self.table) if self.table else find_table(self.root, [TABLE], self.name)
        required = ["ImageID", "PatientID", "Projection", "Pediatric", "MethodLabel", "Labels"]
        rows = read_table(path, required, ["ImageDir", "BitsStored_DICOM"])
        refuse_duplicates(rows["ImageID"], path)
        labels = {cell: _label(cell, path) for cell in rows["Labels"].unique()}
        table = pd.DataFrame(
            {
                "image_path": self._locate(rows, path),
                "label": rows["Labels"].map({cell: label for cell, (label, _) in labels.items()}),
                "patient_id": rows["PatientID"].str.strip(),
                "findings": rows["Labels"].map({cell: findings for cell, (_, findings) in labels.items()}),
                "mask_path": "",
                "projection": rows["Projection"].str.strip(),
                "pediatric": rows["Pediatric"].str.strip(),
                "method": rows["MethodLabel"].str.strip(),
            }
        )
        if self.depth == "table" and "BitsStored_DICOM" in rows.columns:
            table["bits"] = parse_depths(rows["BitsStored_DICOM"], path)
        elif self.depth == "table":
            logger.warning("PadChest: %s has no column 'BitsStored_DICOM', each file tells its own depth", path.name)
        if is_missing(table["patient_id"]).any():
            row = int(is_missing(table["patient_id"]).to_numpy().argmax())
            msg = f"{path}: data row {row + 1} has no PatientID"
            raise TableError(msg)
        return table

    def select(self, selection: Selection) -> None:
        """Filter by label source, projection and age.

        Args:
            selection: The table.
        """
        if self.labelled_by == "physician":
            selection.keep(selection.table["method"] == "Physician", "labelled by physicians")
        projection = f"projection {' or '.join(self.projections)}"
        selection.keep(selection.table["projection"].isin(self.projections), projection)
        if self.patients != "all":
            value = "No" if self.patients == "adults" else "PED"
            selection.keep(selection.table["pediatric"] == value, self.patients)

    def split_preset(self, table: pd.DataFrame) -> pd.Series:
        """Deal the drawn patients to 20 blocks of 5 %, and move on by four blocks from fold to fold.

        Args:
            table: The filtered table.

        Returns:
            Split of each row, "" where not used.
        """
        drawn = table[table["patient_id"].isin(draw_patients(table, _KIM2023, self.seed))]
        compare_counts(self.name, "kim2023", Counter(drawn["label"]), _KIM2023)
        block = (assign_folds(drawn, 20, self.seed) - 4 * (self.fold or 0)) % 20
        diseased = drawn["patient_id"].isin(patients_with_abnormal(drawn))
        split = pd.Series("", index=table.index)
        split[block.index] = "train"
        split[block.index[(block < 6) | diseased]] = "val"
        split[block.index[(block < 3) | (diseased & (block < 10))]] = "test"
        return split

    def _locate(self, rows: pd.DataFrame, path: Path) -> list[str]:
        """Path of each image below the root: in its numbered folder where that exists, else flat."""
        odd = ~rows["ImageID"].str.fullmatch(_PLAIN_NAME)
        if odd.any():
            inside_error = _why_outside(self.root, str(rows["ImageID"][odd].iloc[0]))
            msg = f"{path}: data row {int(odd.to_numpy().argmax()) + 1}: {inside_error}"
            raise TableError(msg)
        base = "images/" if (self.root / "images").is_dir() else ""
        folders: dict[str, str] = {}
        numbered = rows["ImageDir"].str.strip() if "ImageDir" in rows.columns else pd.Series("", index=rows.index)
        for number in numbered.unique():
            exists = number.isdecimal() and (self.root / base / number).is_dir()
            folders[number] = f"{base}{number}/" if exists else base
        return [folders[number] + image for number, image in zip(numbered, rows["ImageID"], strict=True)]


def _why_outside(root: Path, image: str) -> str:
    """Say what is wrong with an ImageID that is no plain file name."""
    try:
        inside(root, image)
    except ValueError as error:
        return str(error)
    return f"{image[:80]!r} is no file name"


def _label(cell: str, path: Path) -> tuple[str, str]:
    """Turn one cell of labels into label and findings."""
    if cell.strip().lower() in {"", "nan", "none"}:
        return "", ""
    try:
        labels = parse_labels(cell)
    except TableError as error:
        msg = f"{path}: column 'Labels': {error}"
        raise TableError(msg) from error
    findings = [label for label in labels if label != "normal"]
    if labels and not findings:
        return NORMAL, ""
    return ABNORMAL if set(findings) - UNINFORMATIVE else "", "|".join(findings)
