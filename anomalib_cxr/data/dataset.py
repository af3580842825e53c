"""Dataset of radiographs read at their true bit depth.

Anomalib's own dataset converts every file to 8-bit RGB, which saturates 16-bit PNG files and cannot open DICOM, and
looks each path of the table up on the disk when the table is set.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataset
from torchvision.transforms.v2 import InterpolationMode, Resize, Transform
from torchvision.transforms.v2.functional import resize
from torchvision.tv_tensors import Image, Mask

from anomalib_cxr.data.items import RadiographBatch, RadiographItem
from anomalib_cxr.data.tables import stored_depth
from anomalib_cxr.imaging import FilmReader, RadiographError
from anomalib_cxr.imaging.cache import ImageCache

Box = tuple[float, float, float, float]
"""x and y of the upper left corner, width, height."""

_REQUIRED = ("image_path", "label_index", "split", "mask_path")


class RadiographDataset(AnomalibDataset):
    """Radiographs of one split, as Anomalib's ``ImageItem`` with patient and findings.

    Images come as ``(3, H, W)`` float32 in [0, 1], the grey value repeated. A table with at least one mask makes a
    segmentation data set, where images without a mask get an empty one; a table without masks makes a classification
    data set.

    Args:
        samples: Table with ``image_path``, ``label_index`` (0 normal, 1 abnormal), ``split`` and ``mask_path`` (""
            where there is none), optionally ``patient_id``, ``findings`` (joined by "|"), ``bits`` (stored bit depth of
            an image, missing where unknown) and ``boxes`` (tuple of (x, y, width, height) in fractions of the image, or
            in pixels of its file where a column ``boxes_in_pixels`` says so, drawn as the mask).
            ``samples.attrs["task"]`` is "segmentation" or "classification"; where it is absent, masks decide.
            That the files exist is for the datamodule to check, in one scan of the folder.
        augmentations: torchvision v2 transform of image and mask together.
        name: Name of the data set, for messages.
        cache: Where decoded images are kept. Images, and masks with them, then come at its size.
        reader: Of images and masks, without a cache; None reads radiographs.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        augmentations: Transform | None = None,
        name: str = "Radiograph",
        cache: ImageCache | None = None,
        reader: FilmReader | None = None,
    ) -> None:
        super().__init__(augmentations=augmentations)
        self._name = name
        self.cache = cache
        self.reader = reader
        self.samples = samples

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self._name

    @property
    def samples(self) -> pd.DataFrame:
        """Table of the samples, sorted by path."""
        if self._samples is None:
            msg = f"{self._name}: no samples were set"
            raise RuntimeError(msg)
        return self._samples

    @samples.setter
    def samples(self, samples: pd.DataFrame) -> None:
        absent = [column for column in _REQUIRED if column not in samples.columns]
        if absent:
            msg = f"{self._name}: the samples table lacks the columns {absent}, it has {list(samples.columns)}"
            raise ValueError(msg)
        task = samples.attrs.get("task")
        if task is None:
            task = TaskType.SEGMENTATION.value if (samples["mask_path"] != "").any() else TaskType.CLASSIFICATION.value
        self._samples = samples.sort_values(by="image_path", ignore_index=True)
        self._samples.attrs["task"] = task

    @property
    def collate_fn(self) -> Callable[[list[RadiographItem]], RadiographBatch]:
        """Makes a batch of items."""
        return cast("Callable[[list[RadiographItem]], RadiographBatch]", RadiographBatch.collate)

    def __getitem__(self, index: int) -> RadiographItem:
        """Read one radiograph.

        Args:
            index: Row of the samples table.

        Returns:
            Item with ``image`` (3, H, W) float32 in [0, 1], ``gt_label`` 0 or 1, ``gt_mask`` (H, W) for segmentation,
            ``image_path`` and ``mask_path``, and the texts ``patient_id`` and ``findings``, None where the table has no
            such column.

        Raises:
            RadiographError: If the image or its mask cannot be read.
        """
        sample = self.samples.iloc[index]
        pixels, file_shape = self._read_image(index)
        image = Image(torch.from_numpy(pixels).unsqueeze(0))
        mask = None
        if self.task == TaskType.SEGMENTATION:
            mask = Mask(torch.from_numpy(self._read_mask(sample, file_shape)))
            if file_shape != pixels.shape:
                mask = resize(mask, list(pixels.shape), interpolation=InterpolationMode.NEAREST)
        image, mask = self._augment(image, mask)
        return RadiographItem(
            image=image,
            gt_mask=mask,
            gt_label=torch.tensor(int(sample["label_index"])),
            image_path=sample["image_path"],
            mask_path=sample["mask_path"],
            patient_id=_text(sample, "patient_id"),
            findings=_text(sample, "findings"),
        )

    def film(self, index: int) -> np.ndarray:
        """Read one radiograph as its file holds it, for a picture.

        Args:
            index: Row of the samples table.

        Returns:
            (H, W) float32 in [0, 1], neither augmented nor made smaller.

        Raises:
            RadiographError: If the image cannot be read.
        """
        sample = self.samples.iloc[index]
        return (self.reader or FilmReader()).read(sample["image_path"], stored_depth(sample.get("bits")))

    def check(self, index: int) -> tuple[str, str | None]:
        """Try to read one image and its mask.

        Args:
            index: Row of the samples table.

        Returns:
            The image's path, and the reason why it cannot be read or None.
        """
        sample = self.samples.iloc[index]
        try:
            file_shape = self._read_image(index)[1]
            if self.task == TaskType.SEGMENTATION:
                self._read_mask(sample, file_shape)
        except RadiographError as error:
            return sample["image_path"], str(error)
        return sample["image_path"], None

    def _augment(self, image: Image, mask: Mask | None) -> tuple[Image, Mask | None]:
        """Apply the augmentations and repeat the grey channel, which a plain resize never needs three times."""
        resize_only = isinstance(self.augmentations, Resize)
        if not resize_only:
            image = _repeat_grey(image)
        if self.augmentations is not None:
            if mask is None:
                image = self.augmentations(image)
            else:
                image, mask = self.augmentations(image, mask)
        return (_repeat_grey(image) if resize_only else image), mask

    def _read_image(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Read the radiograph of one row: (H, W) float32 in [0, 1], and the height and width of its file."""
        if self.cache is not None:
            sample = self.samples.iloc[index]
            return self.cache.read_with_shape(sample["image_path"], bits=stored_depth(sample.get("bits")))
        pixels = self.film(index)
        return pixels, (pixels.shape[0], pixels.shape[1])

    def _read_mask(self, sample: Any, size: tuple[int, int]) -> np.ndarray:
        """Read the mask of one row, (H, W) uint8 of 0 and 1; from its file or its boxes; zeros if none."""
        path = sample["mask_path"]
        if not path:
            boxes = sample.get("boxes")
            boxes = boxes if isinstance(boxes, tuple) else ()
            return draw_boxes(_fractions(boxes, size, sample) if sample.get("boxes_in_pixels", False) else boxes, size)
        mask = (self.reader or FilmReader()).read_mask(path).mask
        if mask.shape != size:
            msg = f"{path}: the mask is {mask.shape} but its image {Path(sample['image_path']).name} is {size}"
            raise RadiographError(msg)
        return mask


def _fractions(boxes: tuple[Box, ...], size: tuple[int, int], sample: Any) -> tuple[Box, ...]:
    """Boxes in pixels as fractions of their image; refused beyond it, where the file is no longer the one measured."""
    height, width = size
    for x, y, box_width, box_height in boxes:
        if x + box_width > width or y + box_height > height:
            msg = (
                f"{sample['image_path']}: a box ends at ({x + box_width:g}, {y + box_height:g}), outside its {width} x "
                f"{height} pixels: the file was made smaller, give the original sizes"
            )
            raise RadiographError(msg)
    return tuple((x / width, y / height, w / width, h / height) for x, y, w, h in boxes)


def draw_boxes(boxes: tuple[Box, ...], size: tuple[int, int]) -> np.ndarray:
    """Draw boxes as a mask.

    Args:
        boxes: (x, y, width, height) of each, in fractions of the image. Parts outside the image are cut off.
        size: Height and width of the image in pixels.

    Returns:
        (H, W) uint8, 1 for every pixel whose centre is in a box.
    """
    mask = np.zeros(size, dtype=np.uint8)
    rows, columns = ((np.arange(length) + 0.5) / length for length in size)
    for x, y, width, height in boxes:
        inside_rows = (rows >= y) & (rows < y + height)
        inside_columns = (columns >= x) & (columns < x + width)
        mask[np.ix_(inside_rows, inside_columns)] = 1
    return mask


def _text(sample: Any, column: str) -> str | None:
    """Text of a cell, "" for a missing value; None where there is no such column."""
    if column not in sample:
        return None
    return "" if pd.isna(sample[column]) else str(sample[column])


def _repeat_grey(image: Image) -> Image:
    """Repeat one grey channel three times: (1, H, W) to (3, H, W)."""
    return Image(image.expand(3, -1, -1).contiguous())
