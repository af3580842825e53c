"""DeepSVDD: a network that maps normal films near a centre, and how far others lie from it."""

from anomalib_cxr.models.deep_svdd.lightning_model import DeepSVDD

__all__ = ["DeepSVDD"]
