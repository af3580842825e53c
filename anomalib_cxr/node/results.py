"""The kinds of DICOM objects that are made of a finding. A new kind is one entry of :data:`MAKERS`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from anomalib_cxr.deploy.overlay import overlay
from anomalib_cxr.deploy.secondary_capture import secondary_capture
from anomalib_cxr.imaging import shown_name
from anomalib_cxr.node.configuration import ResultKind
from anomalib_cxr.node.finding import Finding
from anomalib_cxr.node.segmentation import segmentation
from anomalib_cxr.node.structured_report import structured_report

if TYPE_CHECKING:
    from pydicom import Dataset


def capture(finding: Finding) -> "Dataset":
    """Make a Secondary Capture of the film with its heat map; the film is named by a hash, as pixels leave the house.

    Args:
        finding: What was found.

    Returns:
        The object; its identifiers follow from film and model.
    """
    name = shown_name(str(finding.header.SOPInstanceUID), "hash")
    decided = finding.prediction._replace(abnormal=finding.verdict.abnormal)
    picture = overlay(
        finding.image,
        decided,
        finding.model.kind,
        finding.thresholds,
        name,
        finding.verdict.p_value,
        finding.verdict.outside,
        finding.verdict.not_assessable,
    )
    return secondary_capture(
        picture, finding.path, finding.description, finding.model.sha256, 1, finding.verdict.not_assessable
    )


#: What each kind is made by; None where there is nothing to make.
MAKERS: Mapping[ResultKind, Callable[[Finding], "Dataset | None"]] = {
    "capture": capture,
    "report": structured_report,
    "segmentation": segmentation,
}
