"""CheXpert's labels, which MIMIC-CXR shares: 1 present, 0 absent, -1 uncertain, blank not mentioned.

"No Finding" is 1 or blank, never 0. It ignores support devices: of 22,381 such rows in CheXpert, 8,808 have a device.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL
from anomalib_cxr.data.table_datamodule import TableDataModule
from anomalib_cxr.data.tables import parse_numbers

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five findings of the CheXpert competition, on which AnatPaste reports."""

LABEL_COLUMNS = (*COMPETITION, NO_FINDING, SUPPORT_DEVICES)
"""Columns that every table of labels must have."""


Uncertain = Literal["ignore", "zeros", "ones"]
Split = Literal["patient", "official"]


class CheXpertLabelled(TableDataModule):
    """Base of the sets with CheXpert's labels.

    Subclasses give their table the columns of :func:`label_rows` and ``view``.

    Args:
        root: Folder of the data set.
        views: Views of frontal images to keep, PA or AP as the set writes them.
        uncertain: What -1 means: ``ignore`` (the image is left out), ``zeros`` (absent) or ``ones`` (present).
        keep_support_devices: Keep images with tubes, wires or pacemakers.
        split: ``patient`` divides by ``val_ratio`` and ``test_ratio``, ``official`` takes the split of the set.
        **kwargs: Split, subset and loader arguments, see :class:`TableDataModule`.
    """

    split_settings: ClassVar[tuple[str, ...]] = ("views", "uncertain", "keep_support_devices", "split")

    def __init__(
        self,
        root: str | Path,
        views: Sequence[str] = ("PA",),
        uncertain: Uncertain = "ignore",
        keep_support_devices: bool = True,
        split: Split = "patient",
        **kwargs: Any,
    ) -> None:
        super().__init__(root=root, **kwargs)
        self.views = [views] if isinstance(views, str) else list(views)
        self.uncertain = check_choice("uncertain", uncertain, Uncertain)
        self.keep_support_devices = keep_support_devices
        self.split = check_choice("split", split, Split)

    def select(self, selection: Selection) -> None:
        """Filter by view, uncertainty and support devices; a view of None is unknown and kept.

        Args:
            selection: The table.
        """
        view = selection.table["view"]
        selection.keep(view.isin(self.views) | view.isna(), f"view {' or '.join(self.views)}")
        if self.uncertain == "ignore":
            selection.keep(~selection.table["uncertain"], "none of the five findings uncertain")
        if not self.keep_support_devices:
            selection.keep(~selection.table["support_devices"], "no support devices")


def label_rows(rows: pd.DataFrame, uncertain: Uncertain, path: Path) -> pd.DataFrame:
    """Turn label columns into one label an image.

    Normal is "No Finding" = 1 with none of the five competition findings present; abnormal is at least one of the five
    present. Everything else, such as a fracture alone, gets the label "". An uncertain finding counts as absent
    (``zeros``, and ``ignore``, where the image is left out later) or as present (``ones``).

    Args:
        rows: Text columns :data:`LABEL_COLUMNS`.
        uncertain: ``ignore``, ``zeros`` or ``ones``.
        path: File of the table, for messages.

    Returns:
        Frame with the index of ``rows``: ``label``, ``findings`` (those of the five that are present, joined by "|"),
        ``uncertain`` (whether any of the five is) and ``support_devices`` (whether present).

    Raises:
        TableError: If a cell is neither a number nor empty.
        ValueError: If ``uncertain`` is unknown.
    """
    check_choice("uncertain", uncertain, Uncertain)
    values = {column: _values(rows, column, path) for column in LABEL_COLUMNS}
    five = np.stack([values[finding] for finding in COMPETITION], axis=1)
    present = (five == 1) | ((five == -1) & (uncertain == "ones"))
    abnormal = present.any(axis=1)
    normal = (values[NO_FINDING] == 1) & ~abnormal
    names = np.array(COMPETITION)
    return pd.DataFrame(
        {
            "label": np.select([normal, abnormal & (values[NO_FINDING] != 1)], [NORMAL, ABNORMAL], default=""),
            "findings": ["|".join(names[row]) for row in present],
            "uncertain": (five == -1).any(axis=1),
            "support_devices": values[SUPPORT_DEVICES] == 1,
        },
        index=rows.index,
    )


def _values(rows: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """Numbers of a column, NaN where blank."""
    words = {"true": "1", "false": "0"}
    cells = pd.Series([words.get(cell.strip().lower(), cell) for cell in rows[column]], name=column, dtype=str)
    return parse_numbers(cells, path).to_numpy()
