"""AnatPaste: anomalies pasted inside the lungs or another region, a one-class classifier, kernel density."""

from anomalib_cxr.models.anat_paste.lightning_model import AnatPaste

__all__ = ["AnatPaste"]
