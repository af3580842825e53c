"""Pictures to check a training by: the regions that were found, and what is pasted into them; ours."""

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_cxr.anatomy import RegionMasks
from anomalib_cxr.augmentations import Pasting
from anomalib_cxr.files import written_atomically
from anomalib_cxr.imaging import contact_sheet
from anomalib_cxr.models.components.step_training import StepTrainingMixin
from anomalib_cxr.run_folder import PASTED_SHEET, REGION_SHEET, SHEETS

logger = logging.getLogger(__name__)


def save_training_sheets(detector: StepTrainingMixin, region_masks: RegionMasks | None, pasting: Pasting) -> None:
    """Save the first training images with their regions and with something pasted, in the run's ``sheets/``.

    ``region.png`` has the masks outlined, ``pasted.png`` each image, below it pasted, below that the weights. Nothing
    is written in a trial run of Lightning's, and by one process alone.

    Args:
        detector: In its fit.
        region_masks: Of the training images, or None where none are used; then there is no ``region.png``.
        pasting: The augmentation.
    """
    trainer = detector.trainer
    if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
        return
    dataset = detector.without_augmentation(detector.datamodule.train_data)
    loader = DataLoader(dataset, batch_size=min(8, len(dataset)), collate_fn=dataset.collate_fn)
    images = next(detector.pre_processed(loader)).mean(dim=1, keepdim=True)
    paths = [str(path) for path in dataset.samples.image_path[: len(images)]]
    region = region_masks.lookup(paths, images.device) if region_masks else None
    folder = Path(trainer.default_root_dir) / SHEETS
    _draw(folder, images, region, pasting, detector.seed)
    logger.info("Wrote %s: regions and pasted anomalies of the first training images.", folder)


def _draw(folder: Path, images: torch.Tensor, region: torch.Tensor | None, pasting: Pasting, seed: int) -> None:
    originals = _arrays(images)
    if region is not None:
        masks = [mask[0].numpy() for mask in region.cpu()]
        _save(folder / REGION_SHEET, contact_sheet(originals, masks=masks))
    pictures = list(originals)
    for pasted in pasting(images, region, torch.Generator().manual_seed(seed)):
        pictures += [*_arrays(pasted.image), *_arrays(pasted.mask)]
    _save(folder / PASTED_SHEET, contact_sheet(pictures, columns=len(originals)))


def _save(path: Path, sheet: np.ndarray) -> None:
    with written_atomically(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="PNG")


def _arrays(images: torch.Tensor) -> list[np.ndarray]:
    return [image[0].numpy() for image in images.float().cpu()]
