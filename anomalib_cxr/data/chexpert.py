"""CheXpert: 224,316 chest X-rays of 65,240 patients (Irvin et al., AAAI 2019; Stanford research use agreement).

Layout, full or small (``CheXpert-v1.0-small``); the root is this folder or the one above it::

    CheXpert-v1.0/
    ├── train.csv, valid.csv      labels by path
    ├── groundtruth.csv           official test labels by study, where one has them (also test_labels.csv by path)
    ├── train/patient00001/study1/view1_frontal.jpg
    ├── valid/...
    └── test/...

What the tables are like: uncertain values (-1), blanks, "No Finding" that is never 0, ``AP/PA`` also LL and RL, and
blank for laterals.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.chexpert_labels import COMPETITION, LABEL_COLUMNS, CheXpertLabelled, label_rows
from anomalib_cxr.data.files import inside
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL, order_patients, shrink_counts, split_by_counts
from anomalib_cxr.data.table_datamodule import compare_counts, compare_splits, find_table, name_first
from anomalib_cxr.data.tables import TableError, read_table, refuse_duplicates

logger = logging.getLogger(__name__)

_PATIENT = re.compile(r"(train|valid|test)/(patient\d+)/(study\d+)(?:/|$)")
Preset = Literal["anatpaste", "anatpaste_table2"]

_PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "anatpaste": {"test": {NORMAL: 300, ABNORMAL: 300}, "train": {NORMAL: 5466}},
    "anatpaste_table2": {"test": {NORMAL: 300}, "train": {NORMAL: 5466}},
}
_MINIMUM = {"anatpaste": 50, "anatpaste_table2": 300}


class CheXpert(CheXpertLabelled):
    """CheXpert, by default frontal PA images; abnormal is at least one of the five competition findings.

    ``findings`` holds those of the five that are present. What is neither "No Finding" nor one of the five is left out
    with a count.

    Without a preset, ``split="patient"`` divides ``train.csv`` by patient; ``split="official"`` trains on the normals
    of ``train.csv``, validates on ``valid.csv`` and tests on the official test set (by study; its table does not say AP
    or PA, so all its frontal images are taken).

    Presets (Sato et al., iScience 2023; which images they drew is not published, so the draw is ours):

    - ``anatpaste``: PA; test 300 normal + 300 abnormal images from ``train.csv``, at least 50 a finding; train 5,466
      normals; validation the official PA images of ``valid.csv``.
    - ``anatpaste_table2``: the same, but the test has 300 normals and at least 300 images of each finding.

    Where a copy has fewer images, the counts shrink in proportion, and the log says so.

    Args:
        root: Folder with the tables, or the one above it.
        preset: ``anatpaste``, ``anatpaste_table2`` or None.
        **kwargs: Views (values of ``AP/PA``), labels, split, subset and loader arguments, see
            :class:`CheXpertLabelled`.
    """

    def __init__(
        self,
        root: str | Path = "./datasets/chexpert",
        preset: Preset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.preset = check_choice("preset", preset, Preset | None)
        if preset is not None and (self.views != ["PA"] or self.split != "patient" or self.fold is not None):
            msg = f"CheXpert: preset {preset} fixes the split of PA images, drop views, split and fold"
            raise ValueError(msg)
        if self.fold is not None and self.split == "official":
            msg = "CheXpert: split 'official' has no folds, drop split or fold"
            raise ValueError(msg)

    def load_table(self) -> pd.DataFrame:
        """Read the tables that the split needs, and label each image.

        Returns:
            Table of their images; ``part`` is "train", "valid" or "test".

        Raises:
            TableError: If a table is missing or broken.
        """
        base = self._base()
        folder = self.root / base
        table = self._read_part(find_table(folder, ["train.csv"], self.name), base)
        if self.preset is None and self.split == "patient":
            return table
        parts = [table, self._read_part(find_table(folder, ["valid.csv"], self.name), base)]
        if self.split == "official":
            names = ["groundtruth.csv", "test/groundtruth.csv", "test_labels.csv", "test.csv"]
            parts.append(self._read_part(find_table(folder, names, self.name), base, has_views=False))
        table = pd.concat(parts, ignore_index=True)
        return table.assign(split=table["part"].replace({"valid": "val"}))

    def select(self, selection: Selection) -> None:
        """Filter by view, uncertainty and support devices.

        Args:
            selection: The table.
        """
        selection.keep(selection.table["frontal"], "frontal")
        super().select(selection)

    def split_preset(self, table: pd.DataFrame) -> pd.Series:
        """Draw the test from train.csv, then the training normals from the patients that are left.

        Args:
            table: The filtered table.

        Returns:
            Split of each row, "" where not used.
        """
        preset = str(self.preset)
        published, few = _PRESETS[preset], _MINIMUM[preset]
        train = table[table["part"] == "train"]
        wanted = shrink_counts(train, published)
        in_test = train["patient_id"].isin(draw_with_findings(train, wanted["test"], few, self.seed))
        split = pd.Series("", index=table.index)
        split[table["part"] == "valid"] = "val"
        split[train.index[in_test]] = "test"
        normals = train[~in_test & (train["label"] == NORMAL)]
        split[normals.index] = split_by_counts(normals, {"train": wanted["train"]}, self.seed)
        compare_splits(self.name, preset, table, split, published)
        present = Counter(finding for cell in table["findings"][split == "test"] for finding in cell.split("|"))
        at_least = {finding: min(few, present[finding]) for finding in COMPETITION}
        compare_counts(self.name, f"{preset} ({few} test images a finding)", at_least, dict.fromkeys(at_least, few))
        return split

    def _base(self) -> str:
        """Folder of the tables below the root: "" or "CheXpert-v1.0[-small]/"."""
        if any((self.root / f"train.csv{suffix}").is_file() for suffix in ("", ".gz")):
            return ""
        below = sorted(path.name for path in self.root.glob("CheXpert-v1.0*") if path.is_dir())
        if len(below) > 1:
            msg = f"CheXpert: {self.root} holds {below}, give one of them as root"
            raise TableError(msg)
        return f"{below[0]}/" if below else ""

    def _read_part(self, path: Path, base: str, has_views: bool = True) -> pd.DataFrame:
        """Read one table, by path or by study. The official test table need not tell views: they are unknown then."""
        by_path = ["Path", "AP/PA"]
        rows = read_table(path, [*LABEL_COLUMNS, *(by_path if has_views else [])], [*by_path, "Study"])
        key = next((column for column in ("Path", "Study") if column in rows.columns), None)
        if key is None:
            msg = f"{path} lacks the columns ['Path'] and ['Study'], one of them names the images"
            raise TableError(msg)
        refuse_duplicates(rows[key], path)
        located = [self._locate(value, path, row) for row, value in enumerate(rows[key], start=1)]
        table = label_rows(rows, self.uncertain, path)
        table["image_path"] = [base + found for found, _, _ in located]
        table["part"] = [part for _, part, _ in located]
        table["patient_id"] = [patient for _, _, patient in located]
        table["mask_path"] = ""
        table["view"] = rows["AP/PA"].str.strip() if key == "Path" and "AP/PA" in rows.columns else None
        if key == "Study":
            table = self._images_of_studies(table, path)
        table["frontal"] = table["image_path"].str.contains("frontal")
        return table

    def _locate(self, value: str, path: Path, row: int) -> tuple[str, str, str]:
        """Path below the folder of the tables, official part and patient of a listed image or study."""
        try:
            listed = inside(self.root, value.strip())
        except ValueError as error:
            msg = f"{path}, data row {row}: {error}"
            raise TableError(msg) from error
        found = _PATIENT.search(listed)
        if found is None:
            msg = f"{path}, data row {row}: {value[:80]!r} is not of the form .../train/patient00001/study1/..."
            raise TableError(msg)
        return listed[found.start() :], found[1], found[2]

    def _images_of_studies(self, table: pd.DataFrame, path: Path) -> pd.DataFrame:
        """Repeat each study's row for each of its images."""
        images = [
            [PurePosixPath(study, file.name).as_posix() for file in sorted((self.root / study).glob("*.jpg"))]
            for study in table["image_path"]
        ]
        empty = [study for study, files in zip(table["image_path"], images, strict=True) if not files]
        if empty:
            what = (
                f"{path}: {len(empty)} of {len(images)} studies have no images below {self.root}: {name_first(empty)}"
            )
            if self.on_missing == "raise":
                msg = f"{what}; complete them or pass on_missing='skip'"
                raise TableError(msg)
            logger.warning("CheXpert: %s", what)
        table["image_path"] = pd.Series(images, index=table.index, dtype=object)
        return table.explode("image_path").dropna(subset="image_path").reset_index(drop=True)


def draw_with_findings(table: pd.DataFrame, counts: Mapping[str, int], minimum: int, seed: int) -> set[str]:
    """Draw patients until every finding has ``minimum`` images, then until the counts per label are reached.

    As in :func:`~anomalib_cxr.data.splits.draw_patients`, patients come in hash order and one who would overshoot a
    count is passed over. An image with two findings counts for both.

    Args:
        table: Samples with ``patient_id``, ``label`` and ``findings``.
        counts: Images wanted per label; a label that is absent has no limit, and no more than the findings need.
        minimum: Images wanted of each of the five competition findings.
        seed: Key of the patient order.

    Returns:
        Ids of the patients drawn.
    """
    labels: dict[str, Counter[str]] = {}
    findings: dict[str, Counter[str]] = {}
    for patient, label, cell in zip(table["patient_id"].astype(str), table["label"], table["findings"], strict=True):
        labels.setdefault(patient, Counter())[label] += 1
        findings.setdefault(patient, Counter()).update(finding for finding in cell.split("|") if finding)
    room = dict(counts)
    have: Counter[str] = Counter()
    drawn: set[str] = set()
    order = order_patients(labels, seed)

    def take(patient: str) -> None:
        if patient in drawn or any(number > room.get(label, number) for label, number in labels[patient].items()):
            return
        drawn.add(patient)
        have.update(findings[patient])
        for label in room:
            room[label] -= labels[patient][label]

    for finding in COMPETITION:
        for patient in order:
            if have[finding] >= minimum:
                break
            if findings[patient][finding]:
                take(patient)
    for patient in order:
        if set(labels[patient]) <= set(room):
            take(patient)
    return drawn
