"""Ensemble: the mean of several checkpoints' normalised scores and maps."""

from anomalib_cxr.models.ensemble.lightning_model import Ensemble

__all__ = ["Ensemble"]
