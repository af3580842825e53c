"""What the masks of a data set say as a whole: read once before a run, so that it is said once and not per film."""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import pandas as pd

from anomalib_cxr.checks import check_choice
from anomalib_cxr.data.splits import ABNORMAL, NORMAL
from anomalib_cxr.data.tables import TableError
from anomalib_cxr.imaging import FilmReader, MaskReading, RadiographError
from anomalib_cxr.imaging.progress import progress

logger = logging.getLogger(__name__)

OnMaskConflict = Literal["raise", "warn"]


def check_masks(
    samples: pd.DataFrame,
    name: str,
    on_conflict: OnMaskConflict,
    num_workers: int,
    reader: FilmReader | None = None,
) -> None:
    """Read every mask once, and say with counts what is doubtful about them.

    - A normal image with a lesion drawn: its pixels would count in all pixel metrics, against its label.
    - An abnormal image with nothing drawn: warned of, since a finding need not be visible.
    - A mask that had to be decided on: lossy, or of more than two levels.

    Masks that cannot be read are passed over: whoever needs them says so.

    Args:
        samples: Table with ``image_path``, ``label``, ``mask_path`` (full, or "") and perhaps ``boxes``.
        name: Data set, for messages.
        on_conflict: What to do about normal images with lesions: ``raise`` or ``warn``.
        num_workers: Threads.
        reader: Of masks; None reads radiographs'.

    Raises:
        TableError: If there are normal images with lesions and ``on_conflict`` is "raise".
    """
    check_choice("on_conflict", on_conflict, OnMaskConflict)
    drawn: dict[str, int] = {}
    masked = samples[samples["mask_path"] != ""]
    decided: dict[str, MaskReading] = {}
    with ThreadPoolExecutor(num_workers) as pool:
        readings = progress(
            pool.map(partial(_read, reader or FilmReader()), masked["mask_path"]),
            f"{name}: reading all masks",
            len(masked),
        )
        for image, path, reading in zip(masked["image_path"], masked["mask_path"], readings, strict=True):
            if reading is not None:
                drawn[image] = int(reading.mask.sum())
                if not reading.is_plain:
                    decided[path] = reading._replace(mask=reading.mask[:0])
    _warn_of_decided(decided, len(masked), name)
    empty = [image for image in samples["image_path"][samples["label"] == ABNORMAL] if drawn.get(image) == 0]
    if empty:
        what = "have a mask with nothing drawn, so that all their pixels count as normal"
        logger.warning("%s: %d abnormal images %s, the first is %s", name, len(empty), what, empty[0])
    normal = samples[samples["label"] == NORMAL]
    lesions = {image: f"{drawn[image]} pixels" for image in normal["image_path"] if drawn.get(image)}
    if "boxes" in samples.columns:
        boxes = zip(normal["image_path"], normal["boxes"], strict=True)
        lesions |= {image: f"{len(found)} boxes" for image, found in boxes if isinstance(found, tuple) and found}
    if lesions:
        first, size = next(iter(lesions.items()))
        count = f"{len(lesions)} of {len(normal)}"
        what = f"{count} normal images have a lesion in their mask, the first is {first} with {size}"
        if on_conflict == "raise":
            msg = f"{name}: {what}: correct the labels or masks, or pass on_mask_conflict='warn' to count their pixels"
            raise TableError(msg)
        logger.warning("%s: %s: they count in the pixel metrics", name, what)


def _read(reader: FilmReader, path: str) -> MaskReading | None:
    try:
        return reader.read_mask(path)
    except RadiographError:
        return None


def _warn_of_decided(decided: dict[str, MaskReading], masks: int, name: str) -> None:
    """Say how many masks are no plain black and white."""
    if decided:
        first = next(iter(decided))
        logger.warning(
            "%s: %d of %d masks are not plain: %d are lossy, %d have more than two levels and %d pixels between black "
            "and the highest, cut at half of it unless they number lesions; the first is %s with %d levels",
            name,
            len(decided),
            masks,
            sum(reading.lossy for reading in decided.values()),
            sum(reading.levels > 2 for reading in decided.values()),
            sum(reading.between for reading in decided.values()),
            first,
            decided[first].levels,
        )
