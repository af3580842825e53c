"""MedIAnomaly's packed sets: published one-class splits of RSNA and VinDr-CXR (Cai et al., Med. Image Anal. 2025).

Layout::

    root/                RSNA/ or VinCXR/ of the benchmark
    ├── data.json        {"train": {"0": [names]}, "test": {"0": [names], "1": [names]}}, 0 normal and 1 abnormal
    └── images/          8-bit PNG, 512 x 512

What the files are like: DDAD's lists (Cai et al., MICCAI 2022) of the same form also have ``train: {"unlabeled":
...}``, which a one-class detector does not see. There is no validation set, and names tell no patient.
"""

import json
import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.files import inside
from anomalib_cxr.data.splits import ABNORMAL, NORMAL, split_by_fold, split_officially
from anomalib_cxr.data.table_datamodule import TableDataModule, compare_splits
from anomalib_cxr.data.tables import TableError

logger = logging.getLogger(__name__)

TABLE = "data.json"
_LISTS = (("train", "0", NORMAL), ("test", "0", NORMAL), ("test", "1", ABNORMAL))
_PUBLISHED = {
    "rsna": {"train": {NORMAL: 3851}, "test": {NORMAL: 1000, ABNORMAL: 1000}},
    "vincxr": {"train": {NORMAL: 4000}, "test": {NORMAL: 1000, ABNORMAL: 1000}},
}

Preset = Literal["rsna", "vincxr"]


class MedAD(TableDataModule):
    """A packed set of MedIAnomaly in its published split.

    The benchmark has no validation set and chooses nothing: thresholds here come from a stated share of the training
    normals, ``val_ratio``, which are then not trained on; the log says how many. So validation has normal films only:
    nothing that needs abnormal ones, such as the choice of a checkpoint by AUROC, can be had, and the image threshold
    is just above the highest validation score, or where ``false_positive_rate`` puts it. With ``fold``, all films are
    pooled, and validation has both labels.

    No patient is known, so each film counts as one.

    Args:
        root: Folder with ``data.json``.
        folder: Folder of the images below the root.
        preset: ``rsna`` or ``vincxr``, to have the published counts checked; or None.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`; ``test_ratio`` has no effect.
    """

    val_labels: ClassVar[tuple[str, ...]] = (NORMAL,)

    def __init__(
        self,
        root: str | Path = "./datasets/medianomaly",
        folder: str = "images",
        preset: Preset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.folder = folder
        self.preset = check_choice("preset", preset, Preset | None)

    def load_table(self) -> pd.DataFrame:
        """Read the lists.

        Returns:
            Table of all listed films but the unlabelled ones; ``part`` is "train" or "test".

        Raises:
            TableError: If the file is not of that form, lists a film twice, or one outside the folder of the images.
        """
        path = self.root / TABLE
        lists = _read_lists(path)
        rows: dict[str, tuple[str, str]] = {}
        for part, key, label in _LISTS:
            for name in lists[part, key]:
                try:
                    image = f"{self.folder}/{inside(self.root / self.folder, name)}"
                except ValueError as error:
                    msg = f"{path}, {part} {key}: {error}"
                    raise TableError(msg) from error
                if image in rows:
                    msg = f"{path}: {name[:80]!r} of {part} {key} is listed twice"
                    raise TableError(msg)
                rows[image] = (label, part)
        logger.info("MedAD: no patient is known, each film counts as one")
        return pd.DataFrame(
            {
                "image_path": list(rows),
                "label": [label for label, _ in rows.values()],
                "patient_id": list(rows),
                "findings": "",
                "mask_path": "",
                "part": [part for _, part in rows.values()],
            }
        )

    def make_splits(self, table: pd.DataFrame) -> pd.Series:
        """Take the published split, and validation from its training normals.

        Args:
            table: The table.

        Returns:
            "train", "val" or "test" for each row.
        """
        if self.fold is not None:
            return split_by_fold(table, self.fold, self.num_folds, self.seed)
        if self.preset is not None:
            compare_splits(self.name, self.preset, table, table["part"], _PUBLISHED[self.preset])
        split = split_officially(table, table["part"], self.seed, self.val_ratio)
        logger.warning(
            "MedAD: the benchmark has no validation set: %d of its %d training normals (val_ratio %g) are held out, "
            "and thresholds come from them",
            (split == "val").sum(),
            (table["part"] == "train").sum(),
            self.val_ratio,
        )
        return split


def _read_lists(path: Path) -> dict[tuple[str, str], list[str]]:
    """Names of each list in ``_LISTS``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        msg = f"MedAD: {path} does not exist, give the folder that holds {TABLE} and the images as root"
        raise TableError(msg) from error
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read as JSON: {' '.join(str(error).split())}"
        raise TableError(msg) from error
    lists = {}
    for part, key, _ in _LISTS:
        parts = content.get(part) if isinstance(content, dict) else None
        names = parts.get(key) if isinstance(parts, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            msg = f'{path} has no list of file names at "{part}": {{"{key}": [...]}}'
            raise TableError(msg)
        lists[part, key] = names
    return lists
