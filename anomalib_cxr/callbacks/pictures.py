"""Which picture of a run shows which image."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from lightning.pytorch import Trainer

from anomalib_cxr.files import folder_below, remove_link
from anomalib_cxr.imaging.picture_names import name_pictures, same_file_key, with_hash


class Pictures:
    """The pictures of one test or predict run.

    Args:
        datasets: What the run evaluates.
        root: Folder that images are named below, None where it is not known.
    """

    def __init__(self, datasets: list[Any], root: Path | None) -> None:
        self.datasets = datasets
        self.root = root
        self.written: dict[str, Path] = {}
        self._owners: dict[str, str] = {}
        images = list(dict.fromkeys(str(image) for dataset in datasets for image in _images(dataset)))
        self._rows = {
            str(image): (dataset, row)
            for dataset in datasets
            if hasattr(dataset, "film")
            for row, image in enumerate(dataset.samples["image_path"])
        }
        self._names = dict(zip(images, name_pictures(images, root), strict=True))

    def place(self, image: str | Path, folder: str | Path, stock: Callable[[], Path]) -> Path:
        """Say where the picture of an image goes, and remember it.

        Args:
            image: Path of the image.
            folder: Folder of the run's pictures.
            stock: Gives the name that Anomalib would take, for images of its own data sets.

        Returns:
            File to write, in a folder that exists, and no other image's of this run.
        """
        image = str(image)
        path = Path(folder) / self._names[image] if image in self._names else stock()
        if self._owners.setdefault(same_file_key(str(path)), image) != image:
            path = Path(with_hash(str(path), image))
        is_below = path.is_relative_to(folder)
        folder_below(folder if is_below else path.parent, *(path.parent.relative_to(folder).parts if is_below else ()))
        remove_link(path)
        self.written[image] = path
        return path

    def film(self, image: str | Path) -> npt.NDArray[np.float32] | None:
        """Read an image for its picture, as its data set reads it: by the set's reader, at the depth its table states.

        Args:
            image: Path of the image.

        Returns:
            (H, W) brightness in [0, 1]; None for an image of a set that is not ours.

        Raises:
            RadiographError: If the image cannot be read.
        """
        if str(image) not in self._rows:
            return None
        dataset, row = self._rows[str(image)]
        return dataset.film(row)  # type: ignore[no-any-return]


def pictures_of(trainer: Trainer) -> Pictures:
    """Find the pictures of the run that is going on.

    Images are named below the folder of their data set or the folder that is predicted, whatever the model; those of
    Anomalib's own data sets keep Anomalib's names.

    Args:
        trainer: Trainer in a test or predict run.

    Returns:
        The same object throughout a run.
    """
    datasets = evaluated_datasets(trainer)
    known = _of_runs.get(trainer)
    if known is None or len(known.datasets) != len(datasets) or any(map(_differ, known.datasets, datasets)):
        known = _of_runs[trainer] = Pictures(datasets, images_root(trainer))
    return known


def images_root(trainer: Trainer) -> Path | None:
    """Find the folder that the images of a run are named below.

    Args:
        trainer: Trainer in a run.

    Returns:
        The datamodule's root; for a folder that is predicted that folder; None where there is neither.
    """
    datamodule = getattr(trainer, "datamodule", None)
    roots = (
        {getattr(datamodule, "root", None)}
        if datamodule is not None
        else {
            getattr(getattr(dataset, "image_filenames", None), "root", None) for dataset in evaluated_datasets(trainer)
        }
    )
    root = roots.pop() if len(roots) == 1 else None
    return None if root is None else Path(root)


def evaluated_datasets(trainer: Trainer) -> list[Any]:
    """Find the data sets that a test or predict run evaluates.

    Args:
        trainer: Trainer in a run.

    Returns:
        The sets themselves, without subsets and the like around them.
    """
    loaders = trainer.predict_dataloaders if trainer.state.fn == "predict" else trainer.test_dataloaders
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    found = [getattr(loader, "dataset", None) for loader in loaders]
    return [inner for dataset in found for inner in _innermost(dataset)]


def _innermost(dataset: Any) -> Iterable[Any]:
    if hasattr(dataset, "datasets"):
        return [inner for one in dataset.datasets for inner in _innermost(one)]
    if hasattr(dataset, "dataset"):
        return _innermost(dataset.dataset)
    return [] if dataset is None else [dataset]


def _images(dataset: Any) -> Iterable[Any]:
    """Images that are named below the root: all but those of Anomalib's own sets."""
    if hasattr(dataset, "image_filenames"):
        return list(dataset.image_filenames)
    samples = getattr(dataset, "samples", None)
    is_stock = type(dataset).__module__.split(".")[0] == "anomalib"
    return [] if is_stock or samples is None or "image_path" not in samples else list(samples["image_path"])


def _differ(one: Any, other: Any) -> bool:
    return one is not other


_of_runs: WeakKeyDictionary[Trainer, Pictures] = WeakKeyDictionary()
