"""Datamodules whose images a table lists: load, filter, find the files, split by patient, and pin the split."""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.cores import available_cores
from anomalib_cxr.data.base import RadiographDataModule, check_samples
from anomalib_cxr.data.duplicates import find_duplicates
from anomalib_cxr.data.failing import find_failing
from anomalib_cxr.data.files import find_missing, name_first
from anomalib_cxr.data.manifest import apply_manifest, check_settings, read_manifest, write_manifest
from anomalib_cxr.data.mask_files import MaskFolder
from anomalib_cxr.data.masks import OnMaskConflict, check_masks
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.split_list import apply_split_list, hash_list, read_split_list
from anomalib_cxr.data.splits import (
    ABNORMAL,
    LABELS,
    NORMAL,
    split_by_fold,
    split_by_patient,
    split_officially,
    take_fraction,
)
from anomalib_cxr.data.tables import TableError, unify_ids

logger = logging.getLogger(__name__)


OnProblem = Literal["raise", "skip"]


class TableDataModule(RadiographDataModule):
    """Radiographs that a table lists.

    Subclasses implement :meth:`load_table` and :meth:`select`; those with presets implement :meth:`split_preset`, and
    those with a split of another kind override :meth:`make_splits`.

    Args:
        root: Folder of the data set.
        val_ratio: Share of the patients for validation, where the set has no split of its own.
        test_ratio: Share of the patients for the test, where the set has no split of its own.
        fold: Round of a patient-grouped cross-validation, from 0, in place of any other split. ``None``: no
            cross-validation.
        num_folds: Number of folds.
        fraction: Part of the patients of each split to use, for a quick start.
        limit: Most patients to use in all.
        split_manifest: File of the split: read if it exists, else made and written there.
        split_list: Somebody's list of file names per part, CSV or JSON, see
            :mod:`~anomalib_cxr.data.split_list`: it is the split, in place of any other. Where it names no validation
            images, ``val_ratio`` of its training patients are taken. A manifest keeps its SHA-256.
        on_missing: What to do if listed images or masks do not exist: ``raise``, or ``skip`` them with a count.
        on_error: What to do with unreadable images: ``raise`` at the first that is needed, or read every image once
            before the training and ``skip`` those that fail; they are listed with their reasons when found and again
            at the end of the run.
        on_mask_conflict: What to do about normal images with a lesion in their mask: ``raise``, or ``warn`` with their
            number and count their pixels.
        check_duplicates: Report byte-identical files in different splits.
        region_dir: Folder of masks of the region that ``AnatPaste`` pastes into, in place of the lungs, each under the
            path that its image has below the root, whatever the suffix; relative to the root or to the working
            directory, or absolute.
        **kwargs: Batch sizes, workers, augmentations and seed, see :class:`RadiographDataModule`.

    Attributes:
        skipped: Reason for each unreadable image that ``on_error="skip"`` left out.
    """

    split_settings: ClassVar[tuple[str, ...]] = ()
    """Attributes of a subclass that decide the split: they are written into its manifest."""

    preset: str | None = None
    """A published split, for sets that know one."""

    def __init__(
        self,
        root: str | Path,
        val_ratio: float = 0.15,
        test_ratio: float = 0.15,
        fold: int | None = None,
        num_folds: int = 5,
        fraction: float = 1.0,
        limit: int | None = None,
        split_manifest: str | Path | None = None,
        split_list: str | Path | None = None,
        on_missing: OnProblem = "raise",
        on_error: OnProblem = "raise",
        on_mask_conflict: OnMaskConflict = "raise",
        check_duplicates: bool = True,
        region_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.val_ratio = val_ratio
        self.test_ratio = test_ratio
        self.fold = fold
        self.num_folds = num_folds
        self.fraction = fraction
        self.limit = limit
        self.split_manifest = Path(split_manifest) if split_manifest is not None else None
        self.split_list = Path(split_list) if split_list is not None else None
        self.on_missing = check_choice("on_missing", on_missing, OnProblem)
        self.on_error = check_choice("on_error", on_error, OnProblem)
        self.on_mask_conflict = check_choice("on_mask_conflict", on_mask_conflict, OnMaskConflict)
        self.region_dir = region_dir
        self.check_duplicates = check_duplicates
        self.skipped: dict[str, str] = {}
        self._gone: set[str] = set()

    @abstractmethod
    def load_table(self) -> pd.DataFrame:
        """Read the tables of the set.

        Returns:
            One row an image: ``image_path`` (below the root, forward slashes), ``label`` ("normal", "abnormal", or ""
            where neither can be said), ``patient_id``, ``findings`` (joined by "|"), ``mask_path`` (as ``image_path``,
            or ""), and what the filters need. A column ``split`` with "train", "val", "test" or "" (not used) is the
            set's own split; a column ``region_path``, as ``mask_path``, the region that anomalies are pasted into.
        """

    def select(self, selection: Selection) -> None:
        """Filter the table; all is kept unless overridden.

        Args:
            selection: The table, filtered in place by :meth:`Selection.keep`.
        """

    def make_splits(self, table: pd.DataFrame) -> pd.Series:
        """Split the filtered table: by preset or fold if one is asked for, else as the set has it, else by patient.

        Where the set has its own split, abnormal training images are not used.

        Args:
            table: The filtered table.

        Returns:
            "train", "val", "test" or "" (not used) for each row.
        """
        if self.preset is not None:
            return self.split_preset(table)
        if self.fold is not None:
            return split_by_fold(table, self.fold, self.num_folds, self.seed)
        if "split" in table.columns:
            return table["split"].mask((table["split"] == "train") & (table["label"] == ABNORMAL), "")
        return split_by_patient(table, self.seed, self.val_ratio, self.test_ratio)

    def split_preset(self, table: pd.DataFrame) -> pd.Series:
        """Split the filtered table as :attr:`preset` says.

        Args:
            table: The filtered table.

        Returns:
            "train", "val", "test" or "" (not used) for each row.
        """
        raise NotImplementedError

    def make_samples(self) -> pd.DataFrame:
        """Load, filter, find the files, split, and check duplicates.

        Returns:
            The samples table with full paths.

        Raises:
            FileNotFoundError: If the root is missing.
            TableError: If a table is broken, a filter leaves nothing, listed images are missing, the manifest was
                changed or does not fit, or a normal image has a lesion drawn.
        """
        if not self.root.is_dir():
            msg = f"{self.name}: the root {self.root} does not exist or is no folder"
            raise FileNotFoundError(msg)
        self.skipped, self._gone = {}, set()
        table = self.load_table().reset_index(drop=True)
        if self.region_dir is not None and "region_path" not in table:
            regions = MaskFolder(self.root, self.region_dir, "region_dir")
            table["region_path"] = regions.find(list(table["image_path"]))
        table["patient_id"] = unify_ids(table["patient_id"], self.name)
        if self.fold is not None:
            table = table.drop(columns="split", errors="ignore")
        selection = Selection(table, self.name)
        self.select(selection)
        selection.keep(selection.table["label"] != "", "labelled normal or abnormal")
        self.keep_existing(selection)
        self._refuse_empty(selection, [(None, label) for label in LABELS])
        selection.table = selection.table.reset_index(drop=True)
        self._split(selection)
        for column in selection.table.columns.intersection(["image_path", "mask_path", "region_path"]):
            selection.table[column] = [str(self.root / path) if path else "" for path in selection.table[column]]
        if self.on_error == "skip":
            self._keep_readable(selection)
        table = selection.table.reset_index(drop=True)
        check_masks(table, self.name, self.on_mask_conflict, available_cores(), self.reader)
        if self.check_duplicates:
            self._report_duplicates(table)
        return table

    def teardown(self, stage: str) -> None:
        """List the skipped images once more: Lightning calls this at the end of a fit, test, validation or prediction.

        Args:
            stage: What ends.
        """
        super().teardown(stage)
        if self.skipped and (self.trainer is None or self.trainer.is_global_zero):
            logger.warning("%s", self.describe_skipped())

    def describe_skipped(self) -> str:
        """Say which images ``on_error="skip"`` left out, and why, one a line."""
        lines = [f"  {path}: {reason}" for path, reason in self.skipped.items()]
        return "\n".join([f"{self.name}: {len(lines)} images could not be read and were skipped:", *lines])

    def find_unreadable(self, samples: pd.DataFrame | None = None) -> dict[str, str]:
        """Read every image once, in parallel, and find those that fail: truncated files, for instance.

        Args:
            samples: Rows to read; the whole table where None.

        Returns:
            Reason for each path that cannot be read, in the order of the table.
        """
        dataset = self.make_dataset(self.samples if samples is None else samples)
        return find_failing(dataset.check, len(dataset), self.name)

    def keep_existing(self, selection: Selection) -> None:
        """Find listed images and masks that do not exist, one look at each folder, and refuse or leave them out.

        Args:
            selection: The table, filtered in place.

        Raises:
            TableError: If any is missing and ``on_missing`` is not "skip".
        """
        for column, kind in (("image_path", "image"), ("mask_path", "mask"), ("region_path", "region mask")):
            if column not in selection.table:
                continue
            listed = selection.table[column]
            missing = set(find_missing(self.root, [path for path in listed if path]))
            if not missing:
                continue
            number = int((listed != "").sum())
            what = f"{len(missing)} of {number} listed {kind}s do not exist below {self.root}: {name_first(missing)}"
            if self.on_missing == "raise":
                msg = f"{self.name}: {what}; complete them or pass on_missing='skip'"
                raise TableError(msg)
            logger.warning("%s: %s", self.name, what)
            gone = listed.isin(missing)
            self._gone |= set(selection.table["image_path"][gone])
            selection.keep(~gone, "file exists" if kind == "image" else f"{kind} exists")

    def _refuse_empty(self, selection: Selection, groups: Iterable[tuple[str | None, str]] | None = None) -> None:
        """Refuse a table that lacks a label, or one that a split needs, and name the filter that took it."""
        needed = {"train": (NORMAL,), "val": self.val_labels, "test": LABELS}
        for split, label in groups or [(split, label) for split, labels in needed.items() for label in labels]:
            culprit = selection.emptied(label, split)
            if culprit is not None:
                what = f"no {label} image is left{f' in the {split} split' if split else ''} after '{culprit}'"
                msg = f"{self.name}: {what}; in order: {selection.describe()}"
                raise TableError(msg)

    def _split(self, selection: Selection) -> None:
        """Split the table, by the manifest if there is one, and leave out what no split takes."""
        table = selection.table
        settings = {key: getattr(self, key) for key in ("preset", "seed", "val_ratio", "test_ratio")}
        settings |= {key: getattr(self, key) for key in ("fold", "fraction", "limit", *self.split_settings)}
        settings["num_folds"] = None if self.fold is None else self.num_folds
        settings["split_list"] = None if self.split_list is None else hash_list(self.split_list)
        if self.split_manifest is not None and self.split_manifest.exists():
            manifest, head = read_manifest(self.split_manifest, self.name)
            logger.info("%s: split of %s, SHA-256 %s", self.name, self.split_manifest, head["sha256"])
            check_settings(head["settings"], settings, self.split_manifest, self.name)
            manifest = manifest[~manifest["image"].isin(self._gone)]
            selection.split(apply_manifest(table, manifest, self.split_manifest, self.name))
            self._refuse_empty(selection)
            return
        selection.split(self.make_splits(table) if self.split_list is None else self._split_by_list(table))
        if self.fraction != 1.0 or self.limit is not None:
            taken = take_fraction(selection.table, self.seed, self.fraction, self.limit)
            selection.keep(taken, f"fraction {self.fraction}, limit {self.limit}")
        self._refuse_empty(selection)
        if self.split_manifest is not None:
            check_samples(selection.table, self.name, self.val_labels)  # a split that is refused must not be kept
            rows = selection.table.rename(columns={"image_path": "image"})
            write_manifest(self.split_manifest, rows, self.name, settings)

    def _split_by_list(self, table: pd.DataFrame) -> pd.Series:
        """Split as the list says; validation is drawn from its training part where it has none."""
        path = self.split_list
        if path is None or self.fold is not None or self.preset is not None:
            msg = f"{self.name}: the split list {path} is the split, drop fold and preset"
            raise ValueError(msg)
        parts = read_split_list(path)
        logger.info("%s: split list %s, SHA-256 %s", self.name, path, hash_list(path))
        split = apply_split_list(table, parts, path, self.name)
        unused = (split == "train") & (table["label"] == ABNORMAL)
        if unused.any():
            logger.info("%s: %d abnormal images in its training part are not trained on", self.name, unused.sum())
        if "val" in parts.values():
            return split.mask(unused, "")
        logger.warning(
            "%s: the split list %s names no validation images: val_ratio %g of its training patients are taken",
            self.name,
            path,
            self.val_ratio,
        )
        return split_officially(table, split, self.seed, self.val_ratio)

    def _keep_readable(self, selection: Selection) -> None:
        """Leave out what cannot be read, and say why."""
        table = selection.table
        failing = self.find_unreadable(table.assign(label_index=0))
        for path, reason in failing.items():
            logger.warning("%s: skipped %s: %s", self.name, path, reason)
        logger.info("%s: %d of %d images cannot be read and are skipped", self.name, len(failing), len(table))
        self.skipped |= failing
        if failing:
            selection.keep(~table["image_path"].isin(failing), "readable")
            self._refuse_empty(selection)

    def _report_duplicates(self, table: pd.DataFrame) -> None:
        """Say how many files are in several splits under different names."""
        groups = find_duplicates(table)
        if groups:
            logger.warning(
                "%s: %d groups of byte-identical files are in more than one split, the first is %s",
                self.name,
                len(groups),
                " = ".join(groups[0]),
            )


def find_table(root: Path, names: Iterable[str], name: str) -> Path:
    """Find a table by its published name, plain or gzipped.

    Args:
        root: Folder of the data set.
        names: File names, in order of preference.
        name: Data set, for the message.

    Returns:
        Path of the first that exists.

    Raises:
        TableError: If there is none.
    """
    candidates = [f"{stem}{suffix}" for stem in names for suffix in ("", ".gz")]
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    msg = f"{name}: no table in {root}, one of {candidates} is needed"
    raise TableError(msg)


def locate_table(root: Path, given: str | Path) -> Path:
    """Locate a table that the user names.

    Args:
        root: Folder of the data set.
        given: Path relative to the root or to the working directory, or an absolute one.

    Returns:
        Path below the root if there is such a file, else the path as it was given.
    """
    return root / given if (root / given).is_file() else Path(given)


def compare_counts(name: str, preset: str, found: Mapping[str, int], published: Mapping[str, int]) -> None:
    """Say whether a preset found the published numbers of images.

    Args:
        name: Data set.
        preset: Preset.
        found: Images of each group.
        published: Images of each group in the paper.
    """
    differences = [
        f"{group} {found.get(group, 0)} (published {number})"
        for group, number in published.items()
        if found.get(group, 0) != number
    ]
    if differences:
        logger.warning("%s: preset %s differs from the published counts: %s", name, preset, ", ".join(differences))
    else:
        logger.info("%s: preset %s has the published counts", name, preset)


def compare_splits(
    name: str, preset: str, table: pd.DataFrame, split: pd.Series, published: Mapping[str, Mapping[str, int]]
) -> None:
    """Say whether the splits of a preset have the published numbers of images.

    Args:
        name: Data set.
        preset: Preset, or "official" for the set's own split.
        table: Rows with ``label``.
        split: Split of each row.
        published: Images per split and label in the paper.
    """
    groups = {f"{part} {label}": number for part, counts in published.items() for label, number in counts.items()}
    compare_counts(name, preset, Counter(split + " " + table["label"]), groups)
