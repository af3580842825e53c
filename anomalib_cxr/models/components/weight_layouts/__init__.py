"""Files of weights, in the layouts that people have them in, for timm's models."""

from anomalib_cxr.models.components.weight_layouts.layout import WeightLayout
from anomalib_cxr.models.components.weight_layouts.loading import LAYOUTS, load_weights, published_backbone

__all__ = ["LAYOUTS", "WeightLayout", "load_weights", "published_backbone"]
