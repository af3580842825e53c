"""Anyone's own radiographs: listed in a CSV file, or sorted into folders.

CSV::

    root/
    ├── images.csv      image_path,label[,patient_id,split,findings,mask_path,region_path,bits]
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_cxr.data.files import find_bare, inside, scan_images
from anomalib_cxr.data.mask_files import MaskFolder, refuse_masks, without_masks
from anomalib_cxr.data.split_list import PARTS
from anomalib_cxr.data.splits import ABNORMAL, LABELS, NORMAL
from anomalib_cxr.data.table_datamodule import TableDataModule, locate_table
from anomalib_cxr.data.tables import TableError, is_missing, parse_depths, read_table, refuse_duplicates
from anomalib_cxr.imaging import FilmReader

logger = logging.getLogger(__name__)

Word = str | int | float

_WHOLE = re.compile(r"([+-]?\d+)\.0*")


class RadiographTable(TableDataModule):
    """Own data, from a CSV file or from folders of normal and abnormal images.

    Labels and splits are compared without regard to case. Without a split, patients are split by ``val_ratio`` and
    ``test_ratio``; with one, it is taken as it is, and abnormal training images are not used. Without a patient each
    image is a patient of its own, which the log says.

    Args:
        root: Folder that holds all images.
        table: CSV file, relative to the root or to the working directory. ``None``: the folders are the labels.
        image_column: Column of paths relative to the root, or of bare file names, which are looked for in all folders.
        label_column: Column of labels, or of lists of labels joined by "|".
        patient_column: Column of patient ids.
        split_column: Column of splits: train, val (valid, validation) or test.
        findings_column: Column of findings, joined by "|"; may be that of the labels. Normal values are none.
        mask_column: Column of mask paths relative to the root, empty for normal images.
        bits_column: Column of stored bit depths.
        normal_values: Labels, or folder names, of normal images; one or several, words or numbers.
        abnormal_values: The same of abnormal images.
        patient_pattern: Regular expression found in the image path, whose first group (or whole match) is the patient.
        mask_dir: Folder of masks, relative to the root or to the working directory, or absolute:
            ``test/abnormal/a.png`` has its mask in ``<mask_dir>/test/abnormal/a.png``, whatever the suffix. A table
            with a column of masks may give bare file names that are found there.
        region_column: Column of paths of the masks of the region that ``AnatPaste`` pastes into, in place of the lungs;
            as ``mask_column``, with ``region_dir`` for ``mask_dir``.
        reader: Of the images and masks that the table lists, for other formats than those of radiographs, see
            :class:`~anomalib_cxr.data.monai_reader.MonaiReader`. Not with ``cache_dir``.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.

    Raises:
        ValueError: If a label is in both lists, a pattern is none, or a reader comes without a table or with a cache.
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
        normal_values: Sequence[Word] | Word = ("normal", 0),
        abnormal_values: Sequence[Word] | Word = ("abnormal", 1),
        patient_pattern: str | None = None,
        mask_dir: str | Path | None = None,
        region_column: str = "region_path",
        reader: FilmReader | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.table = Path(table) if table is not None else None
        if reader is not None and (self.table is None or self.cache is not None):
            msg = "RadiographTable: a reader reads what a table lists, and keeps nothing: give table and no cache_dir"
            raise ValueError(msg)
        self.reader = reader
        self.columns = {
            "image_path": image_column,
            "label": label_column,
            "patient_id": patient_column,
            "split": split_column,
            "findings": findings_column,
            "mask_path": mask_column,
            "region_path": region_column,
            "bits": bits_column,
        }
        self.labels = dict.fromkeys(_words(normal_values), NORMAL)
        abnormal = dict.fromkeys(_words(abnormal_values), ABNORMAL)
        both = [word for word in abnormal if word in self.labels]
        if both:
            msg = f"RadiographTable: {both} are in normal_values and in abnormal_values"
            raise ValueError(msg)
        self.labels |= abnormal
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
            TableError: If the file is broken, a label or split unknown, a path repeated or outside the root, a bare
                name ambiguous; if there are masks among the images of a folder tree, or ``mask_dir`` is no folder of
                masks.
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

    def _load_csv(self, listed: Path) -> pd.DataFrame:
        """Read the CSV file. Columns of other than the default names must exist; one may serve as several."""
        path = locate_table(self.root, listed)
        defaults = {"patient_id", "split", "findings", "mask_path", "region_path", "bits"}
        required = [name for key, name in self.columns.items() if name != key or key not in defaults]
        rows = read_table(path, list(dict.fromkeys(required)), list(dict.fromkeys(self.columns.values())))
        given = {key: rows[name] for key, name in self.columns.items() if name in rows.columns}
        masks, regions = self._folder("mask_dir"), self._folder("region_dir")
        images = self._paths(given["image_path"], path, [one for one in (masks, regions) if one])
        table = pd.DataFrame({"image_path": images})
        refuse_duplicates(table["image_path"], path)
        table["label"] = self._translate_labels(given["label"], path)
        table["patient_id"] = given["patient_id"].str.strip() if "patient_id" in given else ""
        table["findings"] = self._findings(given["findings"]) if "findings" in given else ""
        if "mask_path" in given:
            table["mask_path"] = self._mask_paths(given["mask_path"], path, images, masks)
        else:
            table["mask_path"] = "" if masks is None else masks.find(images)
        if "region_path" in given:
            table["region_path"] = self._mask_paths(given["region_path"], path, images, regions)
        if "bits" in given:
            table["bits"] = parse_depths(given["bits"], path)
        if "split" in given and not is_missing(given["split"]).all():
            table["split"] = self._translate(given["split"], PARTS, path, "train, val or test")
        return table

    def _folder(self, argument: str) -> MaskFolder | None:
        """The folder of masks that an argument names."""
        folder = getattr(self, argument)
        return None if folder is None else MaskFolder(self.root, folder, argument)

    def _paths(self, listed: pd.Series, path: Path, masks: Sequence[MaskFolder]) -> list[str]:
        """Bring listed paths of images below the root, and find bare names in its folders."""
        missing = is_missing(listed)
        if missing.any():
            msg = f"{path}, data row {int(missing.to_numpy().argmax()) + 1}: column '{listed.name}' names no image"
            raise TableError(msg)
        paths = self._inside(listed, path)

        def candidates() -> Iterable[str]:
            return without_masks(scan_images(self.root), masks)

        return find_bare(self.root, paths, candidates, path)

    def _mask_paths(self, listed: pd.Series, path: Path, images: list[str], masks: MaskFolder | None) -> list[str]:
        """The same for masks, of which a row may have none; bare names are those of their folder if one is given."""
        has_mask = ~is_missing(listed)

        def candidates() -> Iterable[str]:
            return set(scan_images(self.root).images) - set(images) if masks is None else masks.paths

        found = iter(find_bare(self.root, self._inside(listed[has_mask], path), candidates, path))
        return [next(found) if present else "" for present in has_mask]

    def _inside(self, listed: pd.Series, path: Path) -> list[str]:
        """Bring listed paths below the root."""
        paths = []
        for row, value in zip(listed.index.tolist(), listed, strict=True):
            try:
                paths.append(inside(self.root, value.strip()))
            except ValueError as error:
                msg = f"{path}, data row {row + 1}: {error}"
                raise TableError(msg) from error
        return paths

    def _translate_labels(self, values: pd.Series, path: Path) -> pd.Series:
        """Translate a column of labels, or of lists of labels joined by "|"."""
        fix = "normal_values and abnormal_values"
        known = {}
        for cell in values.unique():
            if _word(cell) in self.labels or "|" not in cell:
                continue
            found = {self.labels.get(_word(part), "") for part in cell.split("|") if part.strip()}
            if found == set(LABELS):
                msg = f"{path}: the label {cell[:80]!r} is normal and abnormal at once; use {fix}"
                raise TableError(msg)
            if len(found) == 1 and "" not in found:
                known[_word(cell)] = found.pop()
        return self._translate(values, self.labels | known, path, fix)

    def _findings(self, values: pd.Series) -> pd.Series:
        """Findings of each row joined by "|", without those that say that there is none."""
        cells = values.mask(is_missing(values), "")
        kept = {
            cell: "|".join(part.strip() for part in cell.split("|") if self.labels.get(_word(part)) != NORMAL)
            for cell in cells.unique()
        }
        return cells.map(kept)

    def _translate(self, values: pd.Series, words: dict[str, str], path: Path, fix: str) -> pd.Series:
        """Translate a column of words, and refuse those that are not known."""
        translated = values.map(_word).map(words)
        unknown = values[translated.isna()]
        if len(unknown):
            shown = [word[:40] for word in unknown.unique()[:5]]
            msg = f"{path}: {len(unknown)} values of column '{values.name}' are unknown, such as {shown}; use {fix}"
            raise TableError(msg)
        return translated

    def _load_folders(self) -> pd.DataFrame:
        """List the folders: the names on the way to an image are its label and split."""
        scan = scan_images(self.root)
        masks, regions = self._folder("mask_dir"), self._folder("region_dir")
        rows = []
        unlabelled: Counter[str] = Counter()
        for image in without_masks(scan, [one for one in (masks, regions) if one]):
            folders = [_word(part) for part in image.split("/")[:-1]]
            labels = {self.labels[part] for part in folders if part in self.labels}
            splits = {PARTS[part] for part in folders if part in PARTS}
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
        refuse_masks(self.root, dict(zip(table["image_path"], table["label"], strict=True)), {*self.labels, *PARTS})
        table["mask_path"] = "" if masks is None else masks.find(list(table["image_path"]))
        return table.assign(patient_id="", findings="")


def _words(values: Iterable[Word] | Word) -> list[str]:
    """Values, or one of them, as they are compared."""
    several = values if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    return [_word(value) for value in several]


def _word(value: object) -> str:
    """Value without regard to case, blanks around it, and a fraction of zero: 0, "0" and "0.0" are one."""
    text = str(value).strip().lower()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text
