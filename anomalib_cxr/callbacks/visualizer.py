"""Pictures of single films that a person can read, in place of Anomalib's grid of small squares."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anomalib.data import ImageItem
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image import visualizer as stock
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_cxr.callbacks.film_assessor import assessment_of
from anomalib_cxr.callbacks.film_names import film_name
from anomalib_cxr.callbacks.pictures import Pictures, pictures_of
from anomalib_cxr.callbacks.predictions_writer import PredictionsWriter
from anomalib_cxr.checks import check_choice
from anomalib_cxr.files import written_atomically
from anomalib_cxr.imaging import (
    SMOOTHED,
    Caption,
    Names,
    RadiographError,
    heat_map_picture,
    is_radiograph,
    read_radiograph,
)


class HeatMapVisualizer(ImageVisualizer):
    """Draws each film beside its heat map, with a scale of colours and a caption (ours).

    The film is read from its file at its true depth, and shown with its own proportions. The map is smoothed for
    display, which the picture says; masks, metrics and exports keep it as it is. White is the outline of the map above
    its threshold, yellow that of the mask where the data set has one. Below stand name, decision, score, threshold,
    and the p-value where the run knows it; where the score is beyond those of all normal validation images, also that
    the film is "outside of what the model knows". A film that should not be judged by its score is "not assessable",
    with the reason.

    Pictures keep the path of the film below the root of the data.

    Args:
        longest_side: Films are shown with so many pixels at most.
        names: What a picture calls its film: ``"path"`` below the root of the data, or ``"hash"``, a short hash of it,
            where names are private.
        output_dir: Folder of the pictures; None takes ``images`` in that of the run.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> from anomalib_cxr.models import AnatPaste
        >>> AnatPaste(visualizer=HeatMapVisualizer(names="hash"))  # doctest: +SKIP
    """

    def __init__(self, longest_side: int = 512, names: Names = "path", output_dir: str | Path | None = None) -> None:
        check_choice("names", names, Names)
        if longest_side < 32:
            msg = f"longest_side must be at least 32 pixels, not {longest_side}."
            raise ValueError(msg)
        super().__init__(output_dir=output_dir)
        self.longest_side = longest_side
        self.names: Names = names

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Write the pictures of a batch, which the post-processor has normalised by now."""
        del outputs, args, kwargs
        folder = Path(self.output_dir or Path(trainer.default_root_dir) / "images")
        datamodule = getattr(trainer, "datamodule", None)
        pictures = pictures_of(trainer)
        for item in batch:
            picture = self.picture(item, trainer, pl_module)
            if picture is None:
                continue
            path = pictures.place(
                item.image_path or "",
                folder,
                functools.partial(
                    stock.generate_output_filename,
                    input_path=item.image_path or "",
                    output_path=folder,
                    dataset_name=getattr(datamodule, "name", None),
                    category=getattr(datamodule, "category", None),
                ),
            )
            with written_atomically(path) as temporary:
                Image.fromarray(picture).save(temporary, format=Image.registered_extensions()[path.suffix.lower()])

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As for a test."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, *args, **kwargs)

    def visualize(self, predictions: Any) -> Any:
        """Draw predictions outside of a run.

        Args:
            predictions: An item, or a batch.

        Returns:
            A picture, or a list of them for a batch of several; None for what has no heat map.
        """
        items = [predictions] if isinstance(predictions, ImageItem) else list(predictions)
        pictures = [self.picture(item) for item in items]
        images = [None if picture is None else Image.fromarray(picture) for picture in pictures]
        return images[0] if len(images) == 1 else images

    def picture(
        self, item: Any, trainer: Trainer | None = None, pl_module: LightningModule | None = None
    ) -> npt.NDArray[np.uint8] | None:
        """Draw one item.

        Args:
            item: With normalised score and heat map.
            trainer: Of the run, for the film's name and p-value.
            pl_module: Model, for its thresholds; None takes 0.5.

        Returns:
            (h, w, 3) uint8 RGB, or None if the item has no heat map.
        """
        if item.anomaly_map is None:
            return None
        processor = getattr(pl_module, "post_processor", None)
        image_threshold = float(getattr(processor, "normalized_image_threshold", 0.5))
        pixel_threshold = float(getattr(processor, "normalized_pixel_threshold", 0.5))
        p_value, outside = _p_value(item, trainer)
        assessment = assessment_of(trainer, item.image_path)
        caption = Caption(
            name=film_name(item.image_path, trainer, self.names) if item.image_path else "",
            score=None if item.pred_score is None else float(item.pred_score),
            threshold=None if item.pred_score is None else image_threshold,
            abnormal=None if item.pred_label is None else bool(item.pred_label),
            p_value=p_value,
            outside=outside,
            not_assessable="" if assessment is None else assessment.because,
        )
        return heat_map_picture(
            film_of(item, None if trainer is None else pictures_of(trainer)),
            item.anomaly_map.detach().float().squeeze().cpu().numpy(),
            [*caption.lines(), SMOOTHED],
            pixel_threshold,
            self.longest_side,
            None if item.gt_mask is None else item.gt_mask.squeeze().cpu().numpy(),
            beside=True,
        )


def film_of(item: Any, pictures: Pictures | None = None) -> npt.NDArray[np.float32]:
    """Film of an item: from its file as its data set or :func:`read_radiograph` reads it, or the model's input in grey.

    Args:
        item: Item of a batch.
        pictures: Of the run, which know the data set.

    Returns:
        (H, W) brightness in [0, 1].
    """
    try:
        film = pictures.film(item.image_path) if pictures is not None and item.image_path else None
        if film is None and item.image_path and is_radiograph(Path(item.image_path)):
            film = read_radiograph(item.image_path)
    except RadiographError:
        film = None  # the picture then shows what the model saw
    if film is not None:
        return film
    grey = item.image.detach().float().mean(dim=0).cpu()
    if grey.min() < 0 or grey.max() > 1:  # standardised
        grey = (grey - grey.min()) / (grey.max() - grey.min())
    return grey.numpy()


def _p_value(item: Any, trainer: Trainer | None) -> tuple[float | None, bool]:
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, PredictionsWriter) and item.image_path:
            return callback.p_value_of(str(item.image_path)) or (None, False)
    return None, False
