"""One picture of many heat maps, to look a test over at a glance."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from anomalib.data import ImageBatch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from anomalib_cxr.anatomy.assessable import NOT_ASSESSABLE
from anomalib_cxr.callbacks.film_assessor import assessment_of
from anomalib_cxr.callbacks.film_names import film_name
from anomalib_cxr.checks import check_choice
from anomalib_cxr.files import written_atomically
from anomalib_cxr.imaging import Names, blend_heat_map, contact_sheet, smooth_heat_map
from anomalib_cxr.run_folder import HEAT_MAP_SHEET, SHEETS

logger = logging.getLogger(__name__)


class _EvenSpread:
    """Keeps ``count`` items spread evenly over a stream of unknown length, and never more than twice as many.

    Args:
        count: Items to choose.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.items: list[tuple[Any, Any, str]] = []
        self._seen, self._stride = 0, 1

    def wants_next(self) -> bool:
        """Whether the next of the stream is to be added to ``items``."""
        wanted = self._seen % self._stride == 0
        self._seen += 1
        if wanted and len(self.items) == 2 * self.count:
            del self.items[1::2]
            self._stride *= 2
        return wanted

    def chosen(self) -> list[tuple[Any, Any, str]]:
        """``count`` of the kept items, or all where there are fewer."""
        places = np.linspace(0, len(self.items) - 1, min(self.count, len(self.items))).round().astype(int)
        return [self.items[place] for place in places]


class HeatMapSheet(Callback):
    """Writes ``sheets/heat_maps.png`` at the end of a test: images of each label, heat maps over them.

    The images are spread evenly over the test, since files are often sorted by kind. Masks are outlined where the data
    set has them, maps are smoothed for display. Above each stand label, score and name. Only the first process writes.
    (Ours.)

    Args:
        per_label: Images of each label.
        names: See :func:`~anomalib_cxr.imaging.shown_name`.

    Raises:
        ValueError: If ``names`` is unknown.
    """

    def __init__(self, per_label: int = 12, names: Names = "path") -> None:
        self.per_label = per_label
        self.names: Names = check_choice("names", names, Names)
        self._kept: dict[bool, _EvenSpread] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the test before."""
        del trainer, pl_module
        self._kept = {label: _EvenSpread(self.per_label) for label in (False, True)}

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Keep some images of each label; the post-processor has normalised them by now."""
        del pl_module, args
        if not isinstance(outputs, ImageBatch) or outputs.anomaly_map is None or not trainer.is_global_zero:
            return
        items: Any = outputs.items
        for item in items:
            kept = self._kept[bool(item.gt_label)]
            if not kept.wants_next():
                continue
            grey = item.image.float().mean(dim=0).clamp(0, 1).cpu().numpy()
            heat = item.anomaly_map.float().squeeze().cpu().numpy()
            if heat.shape != grey.shape:
                continue  # a pre-processor of the user's own may keep the picture at another size
            mask = None if item.gt_mask is None else item.gt_mask.squeeze().cpu().numpy()
            if mask is not None and mask.shape != grey.shape:
                mask = None
            assessment = assessment_of(trainer, item.image_path)
            title = f"{float(item.pred_score):.2f}"
            if assessment is not None and not assessment.assessable:
                title += f" {NOT_ASSESSABLE}"
            if item.image_path:
                title += f"\n{film_name(item.image_path, trainer, self.names)}"
            kept.items.append((blend_heat_map(grey, smooth_heat_map(heat, grey.shape)), mask, title))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet."""
        del pl_module
        tiles = [
            (picture, mask, f"{'abnormal' if label else 'normal'} {title}")
            for label, kept in self._kept.items()
            for picture, mask, title in kept.chosen()
        ]
        self._kept = {}
        if not tiles:
            return
        pictures, masks, titles = zip(*tiles, strict=True)
        path = Path(trainer.default_root_dir) / SHEETS / HEAT_MAP_SHEET
        sheet: np.ndarray = contact_sheet(pictures, columns=6, masks=masks, titles=titles, tile=192)
        with written_atomically(path) as temporary:
            Image.fromarray(sheet).save(temporary, format="PNG")
        logger.info("Wrote %s: heat maps of some test images, smoothed for display, masks outlined.", path)
