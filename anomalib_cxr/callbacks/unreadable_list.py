"""The images that a prediction left out, because they cannot be read."""

from pathlib import Path

from lightning.pytorch import Trainer

from anomalib_cxr.callbacks.pictures import evaluated_datasets, images_root
from anomalib_cxr.csv_tables import csv_text
from anomalib_cxr.files import write_bytes
from anomalib_cxr.imaging.picture_names import below
from anomalib_cxr.run_folder import UNREADABLE


def unreadable_of(trainer: Trainer) -> dict[str, str]:
    """Find what a run left out.

    Args:
        trainer: Trainer in a predict run, or after it.

    Returns:
        Reason for each image, whose path is below the folder that is predicted.
    """
    if trainer.state.fn != "predict":
        return {}
    found: dict[str, str] = {}
    for dataset in evaluated_datasets(trainer):
        found |= getattr(dataset, "unreadable", {})
    return dict(zip(below(list(found), images_root(trainer)), found.values(), strict=True)) if found else {}


def write_unreadable(folder: Path, unreadable: dict[str, str]) -> None:
    """Write ``unreadable.csv`` with the columns ``image`` and ``reason``, or take an earlier run's away.

    Args:
        folder: Where the run's predictions are.
        unreadable: As :func:`unreadable_of` gives it.
    """
    path = folder / UNREADABLE
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    text = csv_text([("image", "reason"), *unreadable.items()])
    write_bytes(path, text.encode("utf-8", "surrogateescape"))
