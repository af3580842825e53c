"""Filters on a table, each with the count of what it left."""

import logging
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import pandas as pd

from anomalib_cxr.data.splits import ABNORMAL, NORMAL
from anomalib_cxr.data.tables import TableError

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """What one filter left.

    Attributes:
        what: The filter.
        labels: Images of each label.
        groups: Images of each (split, label), or None where the table has no split yet.
    """

    what: str
    labels: Mapping[Hashable, int]
    groups: Mapping[Hashable, int] | None


class Selection:
    """A table under filters, which knows what each of them left.

    Args:
        table: Rows with ``label``: "normal", "abnormal" or, where neither can be said, "". A column ``split``, where
            there is one, is counted too.
        name: Data set, for messages.

    Attributes:
        table: The rows kept so far.
        steps: One entry a filter.

    Examples:
        >>> selection = Selection(pd.DataFrame({"label": ["normal", "abnormal"], "view": ["PA", "L"]}), "Drawn")
        >>> selection.keep(selection.table["view"] == "PA", "projection PA")
        >>> selection.describe()
        'listed 1 + 1, projection PA 1 + 0 (normal + abnormal)'
    """

    def __init__(self, table: pd.DataFrame, name: str) -> None:
        self.table = table
        self.name = name
        self.steps: list[Step] = []
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

    def keep_boxed(self) -> None:
        """Keep normal images, and abnormal ones with a box; for sets whose table has ``boxes``.

        Raises:
            TableError: If no row is left.
        """
        self.keep((self.table["label"] != ABNORMAL) | self.table["boxes"].map(bool), "normal or with a box")

    def split(self, split: pd.Series) -> None:
        """Give each row its final split, and leave out those that have none.

        Args:
            split: "train", "val", "test" or "" (not used) for each row of :attr:`table`.
        """
        self.table = self.table.assign(split=split)
        self.keep(split != "", "division into splits")

    def emptied(self, label: str, split: str | None = None) -> str | None:
        """Name the filter that took the last image of a label.

        Args:
            label: "normal" or "abnormal".
            split: Look at the images of this split only.

        Returns:
            The filter, or None where there still is such an image.
        """
        culprit = None
        for step in reversed(self.steps):
            if split is not None and step.groups is None:
                break
            if step.labels.get(label) if split is None else step.groups and step.groups.get((split, label)):
                break
            culprit = step.what
        return culprit

    def describe(self) -> str:
        """Say in one line what each filter left."""
        numbers = [f"{step.what} {step.labels.get(NORMAL, 0)} + {step.labels.get(ABNORMAL, 0)}" for step in self.steps]
        return f"{', '.join(numbers)} (normal + abnormal)"

    def _count(self, what: str) -> None:
        labels = self.table["label"].value_counts().to_dict()
        groups: dict[Hashable, int] | None = None
        if "split" in self.table.columns:
            groups = self.table.groupby(["split", "label"]).size().to_dict()
        self.steps.append(Step(what, labels, groups))
        numbers = labels.get(NORMAL, 0), labels.get(ABNORMAL, 0)
        logger.info("%s: %s: %d images, %d normal, %d abnormal", self.name, what, len(self.table), *numbers)
