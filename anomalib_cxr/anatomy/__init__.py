"""Anatomy: where the lungs are, or any other region of an image."""

from anomalib_cxr.anatomy.lung_segmentation import LungMethod, segment_lungs, segment_lungs_with_quality
from anomalib_cxr.anatomy.region_function import FunctionPath, describe_function, load_function
from anomalib_cxr.anatomy.region_masks import RegionMasks
from anomalib_cxr.anatomy.region_quality import RegionQuality
from anomalib_cxr.anatomy.regions import Lungs, MaskFiles, Region, RegionFunction

__all__ = [
    "FunctionPath",
    "LungMethod",
    "Lungs",
    "MaskFiles",
    "Region",
    "RegionFunction",
    "RegionMasks",
    "RegionQuality",
    "describe_function",
    "load_function",
    "segment_lungs",
    "segment_lungs_with_quality",
]
