"""Anatomy: where the lungs are, or any other region of an image.

Each name loads its module at its first use, so that lungs are found without torch.
"""

from anomalib_cxr.lazy import at_first_use

TYPE_CHECKING = False  # type checkers take it for True
if TYPE_CHECKING:
    from anomalib_cxr.anatomy.lung_segmentation import LungMethod, segment_lungs, segment_lungs_with_quality
    from anomalib_cxr.anatomy.region_function import FunctionPath, describe_function, load_function
    from anomalib_cxr.anatomy.region_masks import RegionMasks
    from anomalib_cxr.anatomy.region_quality import RegionQuality
    from anomalib_cxr.anatomy.regions import Lungs, MaskFiles, Region, RegionFunction
else:
    __getattr__, __dir__ = at_first_use(__name__)

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
