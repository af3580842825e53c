"""Pixels: radiograph files in, calibrated arrays out."""

from anomalib_cxr.imaging.contact_sheet import contact_sheet
from anomalib_cxr.imaging.heat_map import blend_heat_map
from anomalib_cxr.imaging.pixels import MAX_PIXELS
from anomalib_cxr.imaging.radiograph import (
    DICOM_SUFFIXES,
    RADIOGRAPH_SUFFIXES,
    RadiographError,
    is_radiograph,
    read_radiograph,
)

__all__ = [
    "DICOM_SUFFIXES",
    "MAX_PIXELS",
    "RADIOGRAPH_SUFFIXES",
    "RadiographError",
    "blend_heat_map",
    "contact_sheet",
    "is_radiograph",
    "read_radiograph",
]
