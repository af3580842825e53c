"""What makes the stock `anomalib` command know this package: registration, and readers that know radiographs."""

from anomalib_cxr.plugin.registration import SWITCH, on_import, register, unregister

__all__ = ["SWITCH", "on_import", "register", "unregister"]
