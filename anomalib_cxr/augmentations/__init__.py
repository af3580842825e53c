"""Batched tensor augmentations that make anomalies and views."""

from anomalib_cxr.augmentations.anat_paste import AnatPasteAugmentation, PasteParameters, anat_paste
from anomalib_cxr.augmentations.cut_paste import (
    CutParameters,
    CutPaste3Way,
    CutPasteNormal,
    CutPasteScar,
    CutPasteUnion,
    cut_paste,
)
from anomalib_cxr.augmentations.factory import PastingVariant, build_pasting
from anomalib_cxr.augmentations.intensity import jitter_intensity
from anomalib_cxr.augmentations.pasting import Pasted, Pasting
from anomalib_cxr.augmentations.patches import Patches

__all__ = [
    "AnatPasteAugmentation",
    "CutParameters",
    "CutPaste3Way",
    "CutPasteNormal",
    "CutPasteScar",
    "CutPasteUnion",
    "PasteParameters",
    "Pasted",
    "Pasting",
    "PastingVariant",
    "Patches",
    "anat_paste",
    "build_pasting",
    "cut_paste",
    "jitter_intensity",
]
