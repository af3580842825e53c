"""Region masks of the training films, for detectors that paste into them (ours)."""

import logging
from collections.abc import Callable
from typing import Any

import pandas as pd
from torchvision.transforms.v2 import Transform

from anomalib_cxr.anatomy import MaskFiles, Region, RegionMasks
from anomalib_cxr.data.tables import stored_depths
from anomalib_cxr.imaging.cache import ImageCache
from anomalib_cxr.models.components.pixel_preserving import refuse_moved_pixels

logger = logging.getLogger(__name__)


def find_region_masks(
    detector: Any, region: Callable[[pd.DataFrame], Region], num_workers: int | None = None
) -> RegionMasks:
    """Find the region of all training images, once a fit, at the size of the model.

    Where the datamodule has an image cache, the masks are kept in its folder ``lung_masks`` for the next training.

    Args:
        detector: A :class:`~anomalib_cxr.models.components.step_training.StepTrainingMixin` in its fit.
        region: How the region is found, by the table of training images.
        num_workers: Processes; None takes all cores.

    Raises:
        ValueError: If an augmentation moves pixels away from the masks, or the model takes images of any size.
    """
    datamodule = detector.datamodule
    train_data = datamodule.train_data
    refuse_moved_pixels(train_data.augmentations)
    transform: Transform | None = detector.pre_processor.transform if detector.pre_processor else None
    refuse_moved_pixels(transform)
    size = detector.input_size
    if size is None:
        msg = (
            f"{type(detector).__name__} keeps one region mask an image, so its pre-processor needs a Resize to a fixed "
            "size."
        )
        raise ValueError(msg)
    image_cache: ImageCache | None = getattr(datamodule, "cache", None)  # Anomalib's datamodules have none
    masks = RegionMasks.compute(
        [str(path) for path in train_data.samples.image_path],
        size=(size[0], size[1]),
        region=region(train_data.samples),
        bits=stored_depths(train_data.samples),
        num_workers=num_workers,
        reader=getattr(train_data, "reader", None),  # Anomalib's data sets have none either
        cache_dir=image_cache.folder / "lung_masks" if image_cache else None,
    )
    logger.info(masks.summary())
    return masks


def listed_region(samples: pd.DataFrame) -> MaskFiles | None:
    """The region's files that the datamodule lists (``region_path``), or None where it lists none."""
    if "region_path" not in samples.columns:
        return None
    return MaskFiles(dict(zip(samples["image_path"], samples["region_path"], strict=True)))
