"""Pixels: radiograph files in, calibrated arrays out."""

from anomalib_cxr.imaging.caption import OUTSIDE, Caption, Names, shown_name
from anomalib_cxr.imaging.contact_sheet import contact_sheet
from anomalib_cxr.imaging.film_reader import FilmReader
from anomalib_cxr.imaging.heat_map import SMOOTHED, blend_heat_map, smooth_heat_map
from anomalib_cxr.imaging.heat_map_picture import heat_map_picture
from anomalib_cxr.imaging.lettering import lettering
from anomalib_cxr.imaging.mask import MaskReading, mask_of_levels, read_mask
from anomalib_cxr.imaging.notebook import show
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
    "OUTSIDE",
    "RADIOGRAPH_SUFFIXES",
    "SMOOTHED",
    "Caption",
    "FilmReader",
    "MaskReading",
    "Names",
    "RadiographError",
    "blend_heat_map",
    "contact_sheet",
    "heat_map_picture",
    "is_radiograph",
    "lettering",
    "mask_of_levels",
    "read_mask",
    "read_radiograph",
    "show",
    "shown_name",
    "smooth_heat_map",
]
