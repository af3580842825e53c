"""Anomaly detectors for chest radiographs, as Anomalib modules."""
