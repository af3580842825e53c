"""AutoEncoder: reconstruct normal radiographs through a narrow code, and score by what is lost."""

from anomalib_cxr.models.auto_encoder.lightning_model import AutoEncoder

__all__ = ["AutoEncoder"]
