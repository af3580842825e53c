"""MIMIC-CXR-JPG: 377,110 chest X-rays of 65,379 patients (Johnson et al. 2019; PhysioNet credentialed licence).

Layout::

    root/
    ├── mimic-cxr-2.0.0-metadata.csv.gz    one row an image
    ├── mimic-cxr-2.0.0-split.csv.gz       official split
    ├── mimic-cxr-2.0.0-chexpert.csv.gz    CheXpert labels, one row a study
    └── files/p10/p10000032/s50414267/<dicom_id>.jpg
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from anomalib_cxr.data.chexpert_labels import LABEL_COLUMNS, CheXpertLabelled, Split, label_rows
from anomalib_cxr.data.table_datamodule import find_table
from anomalib_cxr.data.tables import TableError, read_table, refuse_duplicates

logger = logging.getLogger(__name__)

_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_STUDY = ["subject_id", "study_id"]


class MIMICCXR(CheXpertLabelled):
    """MIMIC-CXR-JPG in its official split, by default PA images, with CheXpert labels.

    Normal is "No Finding", abnormal at least one of the five CheXpert competition findings; other images, and those of
    studies without labels, are left out with a count. Abnormal training images are not used. ``findings`` holds those
    of the five that are present.

    Args:
        root: Folder with the three tables and ``files``.
        split: ``official``, or ``patient`` to divide anew by ``val_ratio`` and ``test_ratio``.
        **kwargs: Views (values of ``ViewPosition``), labels, split, subset and loader arguments, see
            :class:`CheXpertLabelled`.
    """

    def __init__(
        self,
        root: str | Path = "./datasets/mimic-cxr-jpg",
        split: Split = "official",
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, split=split, **kwargs)

    def load_table(self) -> pd.DataFrame:
        """Join the three tables.

        Returns:
            Table of all images of the metadata.

        Raises:
            TableError: If a table is missing or broken, names an image or study twice, or the split lacks images.
        """
        metadata_path, split_path, label_path = (
            find_table(self.root, [f"mimic-cxr-2.{minor}.0-{kind}.csv" for minor in (0, 1)], self.name)
            for kind in ("metadata", "split", "chexpert")
        )
        metadata = read_table(metadata_path, ["dicom_id", *_STUDY, "ViewPosition"])
        refuse_duplicates(metadata["dicom_id"], metadata_path)
        for column, pattern in (("dicom_id", r"[\w-]+"), ("subject_id", r"\d{8}"), ("study_id", r"\d+")):
            odd = metadata[column][~metadata[column].str.fullmatch(pattern)]
            if len(odd):
                msg = f"{metadata_path}: {odd.iloc[0][:80]!r} in column '{column}' is no id of MIMIC-CXR"
                raise TableError(msg)
        subject = metadata["subject_id"]
        folder = "files/p" + subject.str[:2] + "/p" + subject + "/s" + metadata["study_id"]
        table = self._labels_of(metadata, label_path).assign(
            image_path=folder + "/" + metadata["dicom_id"] + ".jpg",
            patient_id="p" + subject,
            mask_path="",
            view=metadata["ViewPosition"].str.strip(),
        )
        if self.split == "official":
            table["split"] = self._splits_of(metadata, split_path)
        return table

    def _labels_of(self, metadata: pd.DataFrame, path: Path) -> pd.DataFrame:
        """Label each image by its study; images of studies without labels get ""."""
        rows = read_table(path, [*_STUDY, *LABEL_COLUMNS])
        refuse_duplicates(rows["study_id"], path)
        labels = label_rows(rows, self.uncertain, path)
        labels[_STUDY] = rows[_STUDY]
        joined = metadata[_STUDY].merge(labels, on=_STUDY, how="left", validate="many_to_one")
        unlabelled = joined["label"].isna()
        if unlabelled.any():
            logger.info("MIMICCXR: %d images are of studies without CheXpert labels", unlabelled.sum())
        filled = joined.fillna({"label": "", "findings": ""})
        for column in ("uncertain", "support_devices"):
            filled[column] = joined[column].eq(True)
        return filled.drop(columns=_STUDY)

    def _splits_of(self, metadata: pd.DataFrame, path: Path) -> pd.Series:
        """Official split of each image."""
        rows = read_table(path, ["dicom_id", "split"])
        refuse_duplicates(rows["dicom_id"], path)
        split = metadata["dicom_id"].map(rows.set_index("dicom_id")["split"].str.strip().map(_SPLITS))
        if split.isna().any():
            first = metadata["dicom_id"][split.isna()].iloc[0]
            msg = f"{path}: {int(split.isna().sum())} images have no split out of {list(_SPLITS)}, the first is {first}"
            raise TableError(msg)
        return split
