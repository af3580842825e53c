"""Predict a folder whatever is wrong with some of its films."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomalib_cxr.imaging import RadiographError
from anomalib_cxr.plugin.reading import ListedFiles
from anomalib_cxr.plugin.wrapping import Wrapping


def keep_readable(dataset: Any) -> Any:
    """Leave out the images of a folder that cannot be read, as ``on_error="skip"`` of our datamodules does.

    Every image is read once, in threads. Left out before the run, a broken film is missed by no loader, with any
    number of workers.

    Args:
        dataset: Anomalib's ``PredictDataset``; its ``image_filenames`` are changed.

    Returns:
        The same data set. Its ``unreadable`` has the reason for each path that was left out.

    Raises:
        RadiographError: If no image can be read.
    """
    from anomalib_cxr.data.failing import find_failing

    def check(index: int) -> tuple[str, str | None]:
        path = str(listed[index])
        try:
            dataset[index]
        except Exception as error:  # noqa: BLE001  # one film must not end the run, whatever a decoder raises
            return path, " ".join(str(error).split()) or type(error).__name__
        return path, None

    listed: list[Path] = dataset.image_filenames
    dataset.unreadable = unreadable = find_failing(check, len(listed), "predict")
    if len(unreadable) == len(listed):
        msg = f"None of the {len(listed)} images can be read, the first: {next(iter(unreadable.values()))}"
        raise RadiographError(msg)
    root = getattr(listed, "root", None)
    kept = [path for path in listed if str(path) not in unreadable]
    dataset.image_filenames = kept if root is None else ListedFiles(kept, root)
    return dataset


def _wrap_dataset(stock: type[Any]) -> Callable[..., Any]:
    """Make the data set of a folder, as the engine does, without what cannot be read."""

    def readable_dataset(*args: Any, **kwargs: Any) -> Any:
        return keep_readable(stock(*args, **kwargs))

    return readable_dataset


#: Where the engine makes the data set of a folder.
PREDICTING = Wrapping([("anomalib.engine.engine", "PredictDataset", _wrap_dataset)])
