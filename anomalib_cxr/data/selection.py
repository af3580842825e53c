"""Filters on a table, each with the count of what it left."""

import logging

import pandas as pd

from anomalib_cxr.data.splits import ABNORMAL, NORMAL
from anomalib_cxr.data.tables import TableError

logger = logging.getLogger(__name__)


class Selection:
    """A table under filters, which knows what each of them left.

    Args:
        table: Rows with ``label``: "normal", "abnormal" or, where neither can be said, "".
        name: Data set, for messages.

    Attributes:
        table: The rows kept so far.
        steps: One entry a filter: its name, and the normal and abnormal images it left.

    Example:
        >>> selection = Selection(pd.DataFrame({"label": ["normal", "abnormal"], "view": ["PA", "L"]}), "Drawn")
        >>> selection.keep(selection.table["view"] == "PA", "projection PA")
        >>> selection.describe()
        'listed 1 + 1, projection PA 1 + 0 (normal + abnormal)'
    """

    def __init__(self, table: pd.DataFrame, name: str) -> None:
        self.table = table
        self.name = name
        self.steps: list[tuple[str, int, int]] = []
        self._count("listed")

    def keep(self, mask: pd.Series, what: str) -> None:
        """Keep the rows where ``mask`` holds.

        Args:
            mask: Boolean column over :attr:`table`.
            what: What the kept rows are, in a few words.

        Raises:
            TableError: If no row is left.
        """
        before = len(self.table)
        self.table = self.table[mask]
        self._count(what)
        if before and not len(self.table):
            msg = f"{self.name}: the filter '{what}' left none of {before} images; filters in order: {self.describe()}"
            raise TableError(msg)

    def emptied(self, label: str) -> str | None:
        """Name the filter that took the last image of a label.

        Args:
            label: "normal" or "abnormal".

        Returns:
            The filter, or None where the label is still there.
        """
        column = 1 if label == NORMAL else 2
        return next((step[0] for step in self.steps if step[column] == 0), None)

    def describe(self) -> str:
        """Say in one line what each filter left."""
        return ", ".join(f"{what} {normal} + {abnormal}" for what, normal, abnormal in self.steps) + (
            " (normal + abnormal)"
        )

    def _count(self, what: str) -> None:
        counts = self.table["label"].value_counts()
        self.steps.append((what, int(counts.get(NORMAL, 0)), int(counts.get(ABNORMAL, 0))))
        logger.info("%s: %s: %d images, %d normal, %d abnormal", self.name, what, len(self.table), *self.steps[-1][1:])
