"""CheXpert's labels, which MIMIC-CXR shares: 1 present, 0 absent, -1 uncertain, blank not mentioned.

"No Finding" is 1 or blank, never 0. It ignores support devices: of 22,381 such rows in CheXpert, 8,808 have a device.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from anomalib_cxr.data.selection import Selection
from anomalib_cxr.data.splits import ABNORMAL, NORMAL
from anomalib_cxr.data.tables import parse_numbers

NO_FINDING = "No Finding"
SUPPORT_DEVICES = "Support Devices"
COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five findings of the CheXpert competition, on which AnatPaste reports."""

Uncertain = Literal["ignore", "zeros", "ones"]
UNCERTAIN = ("ignore", "zeros", "ones")


def label_rows(rows: pd.DataFrame, uncertain: str, path: Path) -> pd.DataFrame:
    """Turn label columns into one label an image.

    Normal is "No Finding" = 1 with none of the five competition findings present; abnormal is at least one of the five
    present. Everything else, such as a fracture alone, gets the label "". An uncertain finding counts as absent
    (``zeros``, and ``ignore``, where :func:`keep_certain` leaves the image out) or as present (``ones``).

    Args:
        rows: Text columns: the five findings, and where the table has them "No Finding" and "Support Devices".
        uncertain: ``ignore``, ``zeros`` or ``ones``.
        path: File of the table, for messages.

    Returns:
        Frame with the index of ``rows``: ``label``, ``findings`` (those of the five that are present, joined by "|"),
        ``uncertain`` (whether any of the five is) and ``support_devices`` (whether present).

    Raises:
        TableError: If a cell is neither a number nor empty.
    """
    values = {column: _values(rows, column, path) for column in (*COMPETITION, NO_FINDING, SUPPORT_DEVICES)}
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
    """Numbers of a column, NaN where blank or absent."""
    if column not in rows.columns:
        return np.full(len(rows), np.nan)
    words = {"true": "1", "false": "0"}
    cells = pd.Series([words.get(cell.strip().lower(), cell) for cell in rows[column]], name=column, dtype=str)
    return parse_numbers(cells, path).to_numpy()


def keep_certain(selection: Selection, uncertain: str, keep_support_devices: bool) -> None:
    """Leave out images by uncertainty and support devices.

    Args:
        selection: Table with the columns of :func:`label_rows`.
        uncertain: ``ignore`` leaves out every image with an uncertain value among the five findings.
        keep_support_devices: Keep images with devices such as tubes, wires and pacemakers.
    """
    if uncertain == "ignore":
        selection.keep(~selection.table["uncertain"], "none of the five findings uncertain")
    if not keep_support_devices:
        selection.keep(~selection.table["support_devices"], "no support devices")
