"""PatchSVDD: patches that know where they lie, and how far they are from those of normal images."""

from anomalib_cxr.models.patch_svdd.lightning_model import PatchSVDD

__all__ = ["PatchSVDD"]
