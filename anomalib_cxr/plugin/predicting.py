"""Predict a folder whatever is wrong with some of its films."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from anomalib_cxr.imaging import RadiographError
from anomalib_cxr.plugin.reading import ListedFiles, read_radiograph_tensor
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


def _wrap_predict(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Let the data set of a folder know the model that will look at it."""

    @functools.wraps(stock)
    def predict(self: Any, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        token = _model.set(model or self.model)
        try:
            return stock(self, model, *args, **kwargs)
        finally:
            _model.reset(token)

    return predict


def _wrap_dataset(stock: type[Any]) -> Callable[..., Any]:
    """Make the data set of a folder, as the engine does, without what cannot be read.

    Detectors of ours see grey radiographs in training and in ``anomalib-cxr-infer``, and so they do here, whatever the
    file: Anomalib would give a coloured one in colour.
    """

    class Radiographs(stock):  # type: ignore[misc]
        """Images read as radiographs."""

        def __getitem__(self, index: int) -> Any:
            from anomalib.data import ImageItem

            path = self.image_filenames[index]
            image = read_radiograph_tensor(path)
            return ImageItem(image=self.transform(image) if self.transform else image, image_path=str(path))

    @functools.wraps(stock, updated=())
    def readable_dataset(*args: Any, **kwargs: Any) -> Any:
        from anomalib_cxr.models.components.scoring import ScoringMixin

        kind = Radiographs if isinstance(_model.get(), ScoringMixin) else stock
        return keep_readable(kind(*args, **kwargs))

    return readable_dataset


_model: ContextVar[Any] = ContextVar("model", default=None)

#: Where the engine makes the data set of a folder.
PREDICTING = Wrapping(
    [
        ("anomalib.engine.engine", "PredictDataset", _wrap_dataset),
        ("anomalib.engine.engine", "Engine.predict", _wrap_predict),
    ]
)
