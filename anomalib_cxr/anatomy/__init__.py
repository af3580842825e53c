"""Anatomy: where the lungs are."""

from anomalib_cxr.anatomy.lung_masks import LungMasks
from anomalib_cxr.anatomy.lung_segmentation import LungMethod, LungQuality, segment_lungs, segment_lungs_with_quality

__all__ = ["LungMasks", "LungMethod", "LungQuality", "segment_lungs", "segment_lungs_with_quality"]
