"""`anomalib report`: finished runs as one page."""
