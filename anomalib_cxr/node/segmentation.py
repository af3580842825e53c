"""The region above the pixel threshold as a Segmentation at the film's geometry."""

from typing import TYPE_CHECKING

import numpy as np

from anomalib_cxr import __version__
from anomalib_cxr.deploy.secondary_capture import MANUFACTURER
from anomalib_cxr.node.finding import Finding
from anomalib_cxr.node.highdicom_objects import SERIES, code, evidence, finish

if TYPE_CHECKING:
    from pydicom import Dataset

#: What holds for the region because it holds for the film.
_OF_THE_FILM = (
    "PatientOrientation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


def segmentation(finding: Finding) -> "Dataset | None":
    """Make a binary Segmentation of what pictures outline, pixel for pixel of the film.

    Args:
        finding: What was found.

    Returns:
        The object; its identifiers follow from film and model. None where nothing lies above the threshold.
    """
    region = finding.surface() > finding.thresholds.pixel
    if not region.any():
        return None
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation as SegmentationObject
    from highdicom.seg import SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=finding.model.kind, family=codes.DCM.ArtificialIntelligence, version=finding.model.version,
        source=MANUFACTURER,
    )  # fmt: skip
    described = SegmentDescription(
        segment_number=1,
        segment_label="Region above the threshold",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=code("region", "Region of high anomaly score, not for diagnosis"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=finding.uid("region"),
        tracking_id="region above the threshold",
    )
    film = evidence(finding)
    made = SegmentationObject(
        source_images=[film],
        pixel_array=region.astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[described],
        series_instance_uid=finding.uid("segmentation series", film.StudyInstanceUID),
        series_number=SERIES["segmentation"],
        sop_instance_uid=finding.uid("segmentation"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=finding.model.kind,
        software_versions=__version__,
        device_serial_number=finding.model.sha256,
        content_label="ANOMALY",
        content_description="Region above the pixel threshold, not for diagnosis",
    )
    made.PatientOrientation = ""
    for keyword in _OF_THE_FILM:
        if keyword in finding.header:
            made[keyword] = finding.header[keyword]
    return finish(made, finding, "Anomalous region, not for diagnosis")
