"""Anatomy: where the lungs are."""

from anomalib_cxr.anatomy.lung_segmentation import LungQuality, segment_lungs, segment_lungs_with_quality

__all__ = ["LungQuality", "segment_lungs", "segment_lungs_with_quality"]
