"""What pictures of a run call their films."""

from pathlib import Path

from lightning.pytorch import Trainer

from anomalib_cxr.imaging import Names, shown_name


def film_name(image: str | Path, trainer: Trainer | None, names: Names = "path") -> str:
    """Name a film below the root of the run's data.

    Args:
        image: Path of the film.
        trainer: Of the run; its datamodule or, in prediction, its data set knows the root.
        names: See :func:`~anomalib_cxr.imaging.shown_name`.

    Returns:
        Path below the root with ``/``, or where no root is known or the film lies elsewhere, its own name; or the hash
        of that.
    """
    path = Path(image)
    root = _root(trainer)
    inside = root is not None and path.absolute().is_relative_to(root.absolute())
    below = path.absolute().relative_to(root.absolute()) if root is not None and inside else Path(path.name)
    return shown_name(below.as_posix(), names)


def _root(trainer: Trainer | None) -> Path | None:
    root = getattr(getattr(trainer, "datamodule", None), "root", None)
    if root is None:
        loaders = getattr(trainer, "predict_dataloaders", None)
        loader = loaders[0] if isinstance(loaders, list) and loaders else loaders
        root = getattr(getattr(loader, "dataset", None), "path", None)
    if not isinstance(root, str | Path):
        return None
    return Path(root).parent if Path(root).is_file() else Path(root)
