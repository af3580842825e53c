"""NIH ChestX-ray14: 112,120 frontal chest X-rays of 30,805 patients (Wang et al., CVPR 2017; free with citation).

Layout::

    root/
    ├── Data_Entry_2017_v2020.csv    one row an image; the older Data_Entry_2017.csv is read too
    ├── train_val_list.txt, test_list.txt    official split, one file name a line
    ├── BBox_List_2017.csv           984 boxes of 880 images, for masks
    └── images_001/images/ ... images_012/images/    PNG of 1024 x 1024 pixels; or all flat in images/ or in root

What the tables are like: headers hold unquoted commas (``OriginalImage[Width,Height]`` is two columns, and so is each
bracket after it), that of the boxes ends with three commas that no row has; findings are joined by "|" and were mined
from reports by a program; "Infiltration" is "Infiltrate" in the table of the boxes. File names begin with the patient.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.dataset import Box
from anomalib_cxr.data.files import images_by_stem
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL, split_officially
from anomalib_cxr.data.table_datamodule import TableDataModule, compare_counts, find_table
from anomalib_cxr.data.tables import TableError, parse_number, read_columns, read_lines, refuse_repeated

logger = logging.getLogger(__name__)

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
NO_FINDING = "No Finding"
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
SIDE = 1024
"""Side of the published images, in whose pixels the boxes are given."""

_LISTS = {"train": ("train_val_list.txt", 86_524), "test": ("test_list.txt", 25_596)}
_BOX = ["Bbox [x", "y", "w", "h]"]
_NAME = re.compile(r"[0-9]{8}_[0-9]{3}\.png")

Split = Literal["official", "patient"]


class NIH(TableDataModule):
    """NIH ChestX-ray14, by default its PA images in the official split.

    Normal is "No Finding" alone, abnormal any of the 14 findings, which ``findings`` holds.

    The official test set is the test; validation is drawn by patient from the official training set, which has none:
    the share ``val_ratio`` of the patients with and of those without abnormal images. Abnormal training images are not
    used. With ``fold``, both are pooled.

    With ``masks``, the boxes are ground-truth masks, and abnormal images without a box are left out, as nobody marked
    what they have. A box marks one finding of its image; others that it has are not drawn. All 880 images are few, and
    may all lie in the official test set: ``split="patient"`` divides them.

    Args:
        root: Folder with the tables and the images.
        views: Values of ``View Position`` to keep: PA, AP.
        split: ``official``, or ``patient`` to divide anew by ``val_ratio`` and ``test_ratio``.
        masks: Use the boxes as masks, and of the abnormal images those with boxes only.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.
    """

    split_settings: ClassVar[tuple[str, ...]] = ("views", "split", "masks")

    def __init__(
        self,
        root: str | Path = "./datasets/nih",
        views: Sequence[str] = ("PA",),
        split: Split = "official",
        masks: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.views = [views] if isinstance(views, str) else list(views)
        self.split = check_choice("split", split, Split)
        self.masks = masks

    def load_table(self) -> pd.DataFrame:
        """Read the table, the official lists if they are asked for, and the boxes if masks are.

        Returns:
            Table of all listed images; ``part``, with the official split, is "train", "test" or "".

        Raises:
            TableError: If a table is broken: a column missing, an image listed twice or in another patient's name, a
                finding unknown, a box that is none; or if the official split has an image or a patient on both sides.
        """
        path = find_table(self.root, TABLES, self.name)
        rows = read_columns(path, ["Image Index", "Finding Labels", "Patient ID", "View Position"])
        names, cells = rows["Image Index"], rows["Finding Labels"]
        refuse_repeated(names, "Image Index", path)
        patients = _patients(names, rows["Patient ID"], path)
        labels = {cell: _label(cell, path) for cell in set(cells)}
        columns: dict[str, Any] = {
            "image_path": self._locate(names),
            "label": [labels[cell][0] for cell in cells],
            "patient_id": patients,
            "findings": [labels[cell][1] for cell in cells],
            "view": [view.strip() for view in rows["View Position"]],
        }
        if self.masks:
            columns["boxes"] = self._boxes_of(names)
        if self.split == "official" and self.fold is None:
            columns["part"] = self._official_parts(names, patients)
        return pd.DataFrame(columns).assign(mask_path="")

    def select(self, selection: Selection) -> None:
        """Filter by view, and by boxes if masks are asked for.

        Args:
            selection: The table.
        """
        selection.keep(selection.table["view"].isin(self.views), f"view {' or '.join(self.views)}")
        if self.masks:
            selection.keep_boxed()

    def make_splits(self, table: pd.DataFrame) -> pd.Series:
        """Take the official test set and draw validation from the rest, or split anew.

        Args:
            table: The filtered table.

        Returns:
            "train", "val", "test" or "" (not used) for each row.
        """
        if "part" in table.columns:
            return split_officially(table, table["part"], self.seed, self.val_ratio)
        return super().make_splits(table)

    def _locate(self, names: Sequence[str]) -> list[str]:
        """Path of each image below the root, by one look at each folder: numbered ones, else images/, else root."""
        numbered = [path for path in sorted(self.root.glob("images_[0-9]*")) if path.is_dir()]
        folders = [f"{path.name}/images" if (path / "images").is_dir() else path.name for path in numbered]
        if not folders:
            folders = ["images" if (self.root / "images").is_dir() else ""]
        files: dict[str, str] = {}
        for folder in folders:
            for stem, path in images_by_stem(self.root, folder).items():
                if files.setdefault(stem, path) != path:
                    msg = f"NIH: {files[stem]} and {path} below {self.root} are one image, remove one of them"
                    raise TableError(msg)
        base = "images/" if folders == ["images"] else ""
        return [files.get(name.removesuffix(".png"), base + name) for name in names]

    def _official_parts(self, names: Sequence[str], patients: Sequence[str]) -> list[str]:
        """Official part of each image, "" for those that no list has."""
        parts: dict[str, str] = {}
        found: dict[str, int] = {}
        for part, (file, _) in _LISTS.items():
            path = find_table(self.root, [file], self.name)
            listed = read_lines(path)
            refuse_repeated(listed, "file name", path)
            twice = [name for name in listed if name in parts]
            if twice:
                msg = f"{path}: {len(twice)} images are in the other official list too, the first is {twice[0]}"
                raise TableError(msg)
            parts |= dict.fromkeys(listed, part)
            found[part] = len(listed)
        compare_counts(self.name, "official", found, {part: number for part, (_, number) in _LISTS.items()})
        split = [parts.get(name, "") for name in names]
        sides = {part: {who for who, its in zip(patients, split, strict=True) if its == part} for part in _LISTS}
        shared = sides["train"] & sides["test"]
        if shared:
            msg = (
                f"NIH: {len(shared)} patients are on both sides of the official split, the first is {min(shared)}: "
                "correct its lists, or pass split='patient'"
            )
            raise TableError(msg)
        if "" in split:
            logger.warning("NIH: %d images are in neither official list and not used", split.count(""))
        return split

    def _boxes_of(self, names: Sequence[str]) -> list[tuple[Box, ...]]:
        """Boxes of each image in fractions of it, in the order of their table."""
        path = find_table(self.root, ["BBox_List_2017.csv"], self.name)
        rows = read_columns(path, ["Image Index", *_BOX])
        boxes: dict[str, tuple[Box, ...]] = {}
        for row, (name, *cells) in enumerate(zip(*rows.values(), strict=True), start=1):
            x, y, width, height = map(parse_number, cells)
            # Not what is wrong, so that a missing number is wrong too.
            if not (x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= SIDE and y + height <= SIDE):
                msg = f"{path}, data row {row}: {cells} is no box inside {SIDE} x {SIDE} pixels"
                raise TableError(msg)
            boxes[name] = (*boxes.get(name, ()), (x / SIDE, y / SIDE, width / SIDE, height / SIDE))
        strangers = len(set(boxes) - set(names))
        if strangers:
            logger.warning("NIH: %d images of %s are not in the table of images and ignored", strangers, path.name)
        return [boxes.get(name, ()) for name in names]


def _patients(names: Sequence[str], patients: Sequence[str], path: Path) -> list[str]:
    """Patient of each image, by its name; refused where the row says another, or the name is none of this set."""
    for row, (name, patient) in enumerate(zip(names, patients, strict=True), start=1):
        if not _NAME.fullmatch(name) or name[:8] != patient.strip().zfill(8):
            msg = (
                f"{path}, data row {row}: {name[:80]!r} of patient {patient[:20]!r} is no file name such as "
                "00000001_000.png that begins with its Patient ID"
            )
            raise TableError(msg)
    return [name[:8] for name in names]


def _label(cell: str, path: Path) -> tuple[str, str]:
    """Turn one cell of findings into label and findings."""
    findings = list(dict.fromkeys(finding.strip() for finding in cell.split("|")))
    unknown = [finding for finding in findings if finding not in {NO_FINDING, *FINDINGS}]
    if unknown:
        msg = f"{path}: unknown finding {unknown[0][:80]!r} in column 'Finding Labels', there are {list(FINDINGS)}"
        raise TableError(msg)
    if NO_FINDING not in findings:
        return ABNORMAL, "|".join(findings)
    if len(findings) > 1:
        msg = f"{path}: {cell[:80]!r} in column 'Finding Labels' is no finding and a finding at once"
        raise TableError(msg)
    return NORMAL, ""
