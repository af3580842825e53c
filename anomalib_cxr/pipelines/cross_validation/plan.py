"""From the configuration of a cross-validation to its jobs."""

import copy
import importlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_DATA_KEYS = {"class_path", "init_args"}
_MODEL_KEYS = {"class_path", "init_args", "trainer", "data"}
_TRAINER = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}


@dataclass(frozen=True)
class CrossValidationJob:
    """One training and its test: a model on a split of a data set with a seed."""

    data: str
    model: str
    fold: int | None
    seed: int
    config: dict[str, Any]
    """Configuration of the stock command ``anomalib train``, without its folder."""

    @property
    def name(self) -> str:
        """Folder below the results: ``<data>/<model>/fold_<k>_seed_<s>``, or ``seed_<s>`` on the set's own split."""
        split = "" if self.fold is None else f"fold_{self.fold}_"
        return f"{self.data}/{self.model}/{split}seed_{self.seed}"

    @property
    def digest(self) -> str:
        """SHA-256 of the configuration: a finished job is skipped only for the configuration that it was done with."""
        return sha256(json.dumps(self.config, sort_keys=True, default=str).encode()).hexdigest()


class PlanError(ValueError):
    """The configuration of a cross-validation cannot be carried out; the message says where."""


def plan_jobs(
    data: Mapping[str, Any],
    models: Mapping[str, Any],
    folds: Sequence[int] | None,
    num_folds: int,
    seeds: Sequence[int],
    trainer: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
) -> list[CrossValidationJob]:
    """List the jobs: data × models × folds × seeds, seed after seed so that a table of all models is there early.

    The seed goes to the model's own argument ``seed``, where it has one, and to all global random generators. It does
    not touch the split, which the datamodule's own ``seed`` decides.

    Args:
        data: Name and ``class_path``, ``init_args`` of each datamodule.
        models: Name and ``class_path``, ``init_args`` of each model, with ``trainer`` (Lightning trainer arguments) and
            ``data`` (datamodule arguments, such as the batch size) of its own.
        folds: Rounds of the cross-validation; None for the data sets' own splits.
        num_folds: Number of folds.
        seeds: Seeds of the trainings.
        trainer: Trainer arguments of all models.
        root: Root of the data set, in place of the configured one.

    Returns:
        The jobs.

    Raises:
        PlanError: If a key or name is unusable, a class does not exist, or a data set has no folds.
    """
    for kind, entries, keys in (("data", data, _DATA_KEYS), ("models", models, _MODEL_KEYS)):
        _check_entries(kind, entries, keys)
    _check_numbers("seeds", seeds, None)
    if folds is not None:
        _check_numbers("folds", folds, num_folds)
    if root is not None and len(data) > 1:
        msg = f"root replaces the root of one data set, the configuration has {len(data)}: {', '.join(data)}."
        raise PlanError(msg)
    jobs = []
    for seed in seeds:
        for fold in [None] if folds is None else folds:
            for data_name, data_entry in data.items():
                for model_name, model_entry in models.items():
                    config = {
                        "seed_everything": seed,
                        "model": _model(model_name, model_entry, seed),
                        "data": _data(data_name, data_entry, model_entry, fold, num_folds, root),
                        "trainer": {**_TRAINER, **(trainer or {}), **(model_entry.get("trainer") or {})},
                    }
                    jobs.append(CrossValidationJob(data_name, model_name, fold, seed, config))
    return jobs


def _check_entries(kind: str, entries: Mapping[str, Any], keys: set[str]) -> None:
    if not entries:
        msg = f"The configuration lists no {kind}: give each a name with class_path and init_args."
        raise PlanError(msg)
    for name, entry in entries.items():
        if not _NAME.fullmatch(str(name)):
            msg = f"{kind}: the name {name!r} becomes a folder, so it takes letters, digits and . _ + - only."
            raise PlanError(msg)
        if not isinstance(entry, Mapping) or "class_path" not in entry:
            msg = f"{kind}.{name} needs a class_path."
            raise PlanError(msg)
        unknown = sorted(set(entry) - keys)
        if unknown:
            msg = f"{kind}.{name} has the unknown keys {unknown}, it takes {sorted(keys)}."
            raise PlanError(msg)


def _check_numbers(what: str, numbers: Sequence[int], end: int | None) -> None:
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        msg = f"{what} must list different numbers from 0, got {list(numbers)}."
        raise PlanError(msg)
    if end is not None and max(numbers) >= end:
        msg = f"{what} must be below num_folds={end}, got {list(numbers)}."
        raise PlanError(msg)


def _model(name: str, entry: Mapping[str, Any], seed: int) -> dict[str, Any]:
    cls = _find_class(f"models.{name}", entry["class_path"], "anomalib.models")
    arguments = copy.deepcopy(dict(entry.get("init_args") or {}))
    if "seed" in arguments:
        msg = f"models.{name}: leave seed out of init_args, the list of seeds sets it."
        raise PlanError(msg)
    if "seed" in inspect.signature(cls).parameters:
        arguments["seed"] = seed
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def _data(
    name: str,
    entry: Mapping[str, Any],
    model_entry: Mapping[str, Any],
    fold: int | None,
    num_folds: int,
    root: str | Path | None,
) -> dict[str, Any]:
    from anomalib_cxr.data.table_datamodule import TableDataModule

    cls = _find_class(f"data.{name}", entry["class_path"], "anomalib.data")
    arguments = copy.deepcopy({**(entry.get("init_args") or {}), **(model_entry.get("data") or {})})
    if root is not None:
        arguments["root"] = str(root)
    if "root" in arguments:
        arguments["root"] = str(Path(arguments["root"]).resolve())
    if fold is not None:
        if not issubclass(cls, TableDataModule) and "fold" not in inspect.signature(cls).parameters:
            msg = f"data.{name}: {cls.__name__} has no folds, set folds to null and use its own split."
            raise PlanError(msg)
        arguments |= {"fold": fold, "num_folds": num_folds}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def _find_class(where: str, class_path: str, registry: str) -> type:
    """Find a class by its path, or by its bare name where Anomalib looks bare names up."""
    module, _, name = str(class_path).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module or registry), name)
    except (ImportError, AttributeError) as error:
        msg = f"{where}: there is no class {class_path}: {error}."
        raise PlanError(msg) from error
    if not isinstance(cls, type):
        msg = f"{where}: {class_path} is no class."
        raise PlanError(msg)
    return cls
