"""What the objects that highdicom makes have in common: evidence without a patient, codes, and the study they join."""

from typing import TYPE_CHECKING, Any

from anomalib_cxr import __version__
from anomalib_cxr.deploy.secondary_capture import MANUFACTURER, file_beside
from anomalib_cxr.node.finding import Finding

if TYPE_CHECKING:
    from pydicom import Dataset

#: Scheme of our own codes; local ones begin with 99 (PS3.16 8.2).
SCHEME = "99ACXR"
#: After the machines' series, and after the Secondary Captures'.
SERIES = {"report": 9001, "segmentation": 9002}


def evidence(finding: Finding) -> "Dataset":
    """Say which film an object is made of, and nothing of the patient.

    highdicom checks what it copies, and a film with an odd name or date would get no result: patient and study are
    copied by :func:`~anomalib_cxr.deploy.secondary_capture.file_beside` afterwards.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(film, keyword, str(finding.header[keyword].value))
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
    ):
        setattr(film, keyword, "")
    film.Rows, film.Columns = finding.image.shape
    film.Modality = str(finding.header.get("Modality") or "OT")
    return film


def code(value: str, meaning: str) -> Any:
    """A code of our own scheme."""
    from highdicom.sr import CodedConcept

    return CodedConcept(value, SCHEME, meaning)


def coding_scheme() -> "Dataset":
    """What our scheme is (PS3.3 C.12.1.1.1)."""
    from pydicom import Dataset

    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "Codes of anomalib-cxr"
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    return scheme


def finish(made: "Dataset", finding: Finding, description: str) -> "Dataset":
    """Give an object its study, and the words that say what it is."""
    file_beside(made, finding.header)
    made.CodingSchemeIdentificationSequence = [coding_scheme()]
    made.SeriesDescription = f"{description}{', film not assessable' if finding.verdict.not_assessable else ''}"
    made.Manufacturer = MANUFACTURER
    made.ManufacturerModelName = finding.model.kind
    made.DeviceSerialNumber = finding.model.sha256
    made.SoftwareVersions = __version__
    return made
