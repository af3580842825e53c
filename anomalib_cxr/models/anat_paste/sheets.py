"""Pictures to check a training by: the regions that were found, and what is pasted into them; ours."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomalib_cxr.augmentations import Pasting
from anomalib_cxr.files import written_atomically
from anomalib_cxr.imaging import contact_sheet
from anomalib_cxr.run_folder import PASTED_SHEET, REGION_SHEET


def save_training_sheets(
    folder: Path, images: torch.Tensor, region: torch.Tensor | None, pasting: Pasting, seed: int
) -> None:
    """Write ``region.png`` (masks outlined) and ``pasted.png`` (each image, below it pasted, below that the weights).

    Args:
        folder: Where to write; made if it does not exist.
        images: Grey training images in [0, 1], (B, 1, H, W).
        region: Their region masks, (B, 1, H, W), or None where none are used; then there is no ``region.png``.
        pasting: The augmentation.
        seed: Seed of what is pasted.
    """
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
