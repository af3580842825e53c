"""What pictures of a run call their films."""

import os
from pathlib import Path

from lightning.pytorch import Trainer

from anomalib_cxr.imaging import Names, shown_name


def film_name(image: str | Path, trainer: Trainer | None, names: Names = "path") -> str:
    """Name a film below the root of the run's data.

    Args:
        image: Path of the film.
        trainer: Of the run, whose datamodule knows the root; where a folder is predicted, the root is the innermost
            folder that holds all its films.
        names: See :func:`~anomalib_cxr.imaging.shown_name`.

    Returns:
        Path below the root with ``/``, or where no root is known or the film lies elsewhere, its own name; or the hash
        of that.
    """
    path = Path(image)
    root = _root(trainer)
    if root is None or not path.absolute().is_relative_to(root.absolute()):
        return shown_name(path.name, names)
    return shown_name(path.absolute().relative_to(root.absolute()).as_posix(), names)


def _root(trainer: Trainer | None) -> Path | None:
    root = getattr(getattr(trainer, "datamodule", None), "root", None)
    if root is not None:
        return Path(root)
    loaders = getattr(trainer, "predict_dataloaders", None)
    loader = loaders[0] if isinstance(loaders, list) and loaders else loaders
    files = getattr(getattr(loader, "dataset", None), "image_filenames", None)
    # Anomalib's data set for prediction forgets the folder it was given.
    return Path(os.path.commonpath([Path(file).absolute().parent for file in files])) if files else None
