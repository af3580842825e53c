"""FeatureDensity: frozen features of any timm encoder, and how far they lie from normal ones."""

from anomalib_cxr.models.feature_density.lightning_model import FeatureDensity

__all__ = ["FeatureDensity"]
