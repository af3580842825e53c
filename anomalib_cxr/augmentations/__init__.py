"""Batched tensor augmentations that make anomalies."""

from anomalib_cxr.augmentations.anat_paste import AnatPasteAugmentation, PasteParameters, apply_anat_paste
from anomalib_cxr.augmentations.checks import check_images
from anomalib_cxr.augmentations.cut_paste import (
    CutParameters,
    CutPaste3Way,
    CutPasteNormal,
    CutPasteScar,
    CutPasteUnion,
    apply_cut_paste,
)
from anomalib_cxr.augmentations.factory import PastingVariant, build_pasting
from anomalib_cxr.augmentations.intensity import jitter_checked, jitter_intensity
from anomalib_cxr.augmentations.pasting import Pasted, Pasting
from anomalib_cxr.augmentations.patches import Patches
from anomalib_cxr.augmentations.poisson import Blend, BlendParameters, PatchInterpolation, apply_interpolation

__all__ = [
    "AnatPasteAugmentation",
    "Blend",
    "BlendParameters",
    "CutParameters",
    "CutPaste3Way",
    "CutPasteNormal",
    "CutPasteScar",
    "CutPasteUnion",
    "PasteParameters",
    "Pasted",
    "Pasting",
    "PastingVariant",
    "PatchInterpolation",
    "Patches",
    "apply_anat_paste",
    "apply_cut_paste",
    "apply_interpolation",
    "build_pasting",
    "check_images",
    "jitter_checked",
    "jitter_intensity",
]
