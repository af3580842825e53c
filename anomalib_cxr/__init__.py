"""Chest X-ray anomaly detection for Anomalib.

Importing this package is cheap: models, datamodules and the plugin load on use.
"""

__version__ = "0.1.0"
