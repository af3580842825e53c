"""SQUID: in-paint films from what normal ones remember, and score by how real that looks."""

from anomalib_cxr.models.squid.lightning_model import SQUID

__all__ = ["SQUID"]
