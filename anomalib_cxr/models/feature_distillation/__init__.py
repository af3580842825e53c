"""FeatureDistillation: a narrow student learns a frozen teacher's features of normal images, and fails elsewhere."""

from anomalib_cxr.models.feature_distillation.lightning_model import FeatureDistillation

__all__ = ["FeatureDistillation"]
