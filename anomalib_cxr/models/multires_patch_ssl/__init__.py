"""MultiResPatchSSL: patches of several sizes, SimCLR, and a local search among normal references."""

from anomalib_cxr.models.multires_patch_ssl.lightning_model import MultiResPatchSSL

__all__ = ["MultiResPatchSSL"]
