"""Finds the runs of a results folder, and reads what they left."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from anomalib_cxr.callbacks.run_record import RunRecordError, read_record
from anomalib_cxr.folders import without_folders
from anomalib_cxr.metrics.predictions import PredictionsError, check_apart, read_predictions
from anomalib_cxr.run_folder import (
    CONFIG,
    DONE,
    LAST_FOLDER,
    LOG,
    PREDICTIONS,
    RECORD,
    STOCK_CONFIG,
    VALIDATION_PREDICTIONS,
)

CONFIGS = (CONFIG, STOCK_CONFIG)
"""Configuration of a run: a cross-validation's, or the one that Anomalib's command line leaves."""

_REGIONS = re.compile(r"(?:Lung|Region) masks of \d+ images at [^\r\n]*")


@dataclass(frozen=True)
class FinishedRun:
    """One test run, as its folder tells it."""

    name: str
    folder: Path
    """Where its predictions and pictures are."""
    test: pd.DataFrame
    validation: pd.DataFrame | None
    problem: str
    """Why there is no ``validation``; "" where there is."""
    home: Path
    """Where configuration, log and weights are: the folder, or the one above for the last weights."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the run wrote of itself, see :func:`~anomalib_cxr.callbacks.run_record.describe_run`."""
    record_problem: str = ""
    """Why there is no ``record``; "" where there is."""

    @property
    def is_last(self) -> bool:
        """Whether these are the predictions by the last weights, beside those by the chosen ones."""
        return self.home != self.folder

    @property
    def config_path(self) -> Path | None:
        """Configuration of the run, if it left one."""
        return next((self.home / name for name in CONFIGS if (self.home / name).is_file()), None)

    @property
    def config_text(self) -> str:
        """Configuration as it was written; "" where there is none."""
        path = self.config_path
        return "" if path is None else path.read_text(encoding="utf-8", errors="replace")

    @property
    def config(self) -> dict[str, Any]:
        """Configuration as plain data; empty where there is none that can be read."""
        try:
            content = yaml.safe_load(self.config_text)
        except yaml.YAMLError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def done(self) -> dict[str, Any]:
        """What a finished job of a cross-validation notes of itself: ``fit_seconds``, ``versions``; else empty."""
        try:
            content = json.loads((self.home / DONE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def has_record(self) -> bool:
        """Whether there is a ``run.json``, be it broken."""
        return (self.folder / RECORD).exists()

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the training: versions, device, precision, region masks; empty where nothing is."""
        return self.record.get("training", {})

    @property
    def versions(self) -> dict[str, str]:
        """Versions that the predictions were made with; empty where they are not known."""
        versions = self.record.get("versions") or self.done.get("versions")
        return {str(key): str(value) for key, value in versions.items()} if isinstance(versions, dict) else {}

    @property
    def region_quality(self) -> str:
        """What the run or its log says of the region masks; "" where they say nothing."""
        summary = self.training.get("region_masks", self.training.get("lung_masks"))  # of older runs
        if isinstance(summary, str) and summary:
            return summary
        path = self.home / LOG
        if not path.is_file():
            return ""
        found = _REGIONS.findall(path.read_text(encoding="utf-8", errors="replace"))
        return found[-1].strip() if found else ""

    @property
    def split_hashes(self) -> list[str]:
        """SHA-256 of the split; more than one if the file was put together from several."""
        return sorted(set(self.test["split_hash"]) - {""})

    def class_name(self, part: str) -> str:
        """Class of the ``"model"`` or ``"data"``, without its module; "" where it is not known."""
        for section in (self.record.get(part), self.config.get(part)):
            if isinstance(section, dict) and section.get("class_path"):
                return str(section["class_path"]).rpartition(".")[2]
        return ""


def find_runs(results: Sequence[str | Path]) -> tuple[list[FinishedRun], dict[str, str]]:
    """Find all folders with predictions, links left aside.

    Args:
        results: Folders to look in.

    Returns:
        The runs, and the reason for each one that could not be read.

    Raises:
        PredictionsError: If a folder does not exist, or there are no predictions in all of them.
    """
    places: dict[Path, Path] = {}
    for result in results:
        root = Path(result).resolve()
        if not root.is_dir():
            msg = f"There is no folder {root}."
            raise PredictionsError(msg)
        for here, below, files in os.walk(root):
            below.sort()
            if PREDICTIONS in files:
                places.setdefault(Path(here), root)
    if not places:
        msg = f"There is no {PREDICTIONS} in {', '.join(map(str, results))}: a test or predict run writes it."
        raise PredictionsError(msg)
    runs, broken = [], {}
    for folder, name in _names(places).items():
        try:
            runs.append(_read(name, folder))
        except PredictionsError as error:
            broken[name] = without_folders(str(error))
    return runs, broken


def _names(places: Mapping[Path, Path]) -> dict[Path, str]:
    """Name runs by their folders, without those that all of them share; a single one by its folders below its root."""
    shared = Path(os.path.commonpath(places))
    if shared in places:  # a single run, or one and its last weights
        shared = places[shared] if len(places) == 1 and shared != places[shared] else shared.parent
    return {folder: folder.relative_to(shared).as_posix() for folder in places}


def _read(name: str, folder: Path) -> FinishedRun:
    test = read_predictions(folder / PREDICTIONS)
    validation, problem = None, ""
    path = folder / VALIDATION_PREDICTIONS
    if not path.is_file():
        problem = f"the run left no {VALIDATION_PREDICTIONS}"
    else:
        validation = read_predictions(path)
        try:
            check_apart(validation, test)
        except PredictionsError as error:
            validation, problem = None, without_folders(str(error)).removesuffix(".")
    is_last = folder.name == LAST_FOLDER and (folder.parent / PREDICTIONS).is_file()
    record, record_problem = {}, ""
    try:
        record = read_record(folder / RECORD)
    except RunRecordError as error:
        record_problem = without_folders(str(error))
    home = folder.parent if is_last else folder
    return FinishedRun(name, folder, test, validation, problem, home, record, record_problem)
