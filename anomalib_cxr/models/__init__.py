"""Anomaly detectors for chest radiographs, as Anomalib modules."""

from anomalib_cxr.models.anat_paste import AnatPaste

__all__ = ["AnatPaste"]
