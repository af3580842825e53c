"""Heat maps as DICOM Secondary Capture, filed with the study they belong to."""

import uuid
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anomalib_cxr import __version__
from anomalib_cxr.imaging.dicom import is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MANUFACTURER = "anomalib-cxr"

# Of patient and study. Those without which an object is invalid, but which may be empty (type 2), come first.
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_IF_PRESENT = (
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "StudyDescription",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
# Of the picture.
_OF_THE_FILM = (
    "BodyPartExamined",
    "Laterality",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


def file_beside(made: "Dataset", original: "Dataset") -> None:
    """Give an object patient and study of another, as they are, so that an archive files it there.

    Args:
        made: The object; what it says of patient and study is replaced.
        original: The other, with a StudyInstanceUID.
    """
    for keyword in _IF_PRESENT:
        made.pop(keyword, None)
        if original.get(keyword):
            made[keyword] = original[keyword]
    for keyword in _MAY_BE_EMPTY:
        if keyword in original:
            made[keyword] = original[keyword]
        else:
            setattr(made, keyword, "")
    made.StudyInstanceUID = original.StudyInstanceUID
    if _time_zone(made.get("TimezoneOffsetFromUTC")) is None:
        made.pop("TimezoneOffsetFromUTC", None)


def secondary_capture(
    picture: npt.NDArray[np.uint8],
    source: Path,
    description: str,
    run: str,
    number: int,
    not_assessable: str = "",
) -> "Dataset":
    """Make a Secondary Capture (PS3.3 A.8.1) of a picture that was derived from a radiograph.

    Patient and study are those of the source, so that an archive files the picture beside it; series and instance are
    new. It is marked as derived (ImageType, DerivationDescription, SourceImageSequence) and as not for diagnosis
    (SeriesDescription, ImageComments; the picture itself says so too).

    Args:
        picture: (H, W, 3) RGB.
        source: DICOM file that it was derived from.
        description: How, for DerivationDescription; plain ASCII.
        run: Name of the run, unique: pictures of one study in one run form a series.
        number: InstanceNumber.
        not_assessable: Why the film should not be judged by its score, for ImageComments; "" where it may be.

    Returns:
        The data set, to be saved with ``save_as(path, enforce_file_format=True)``.

    Raises:
        ImportError: If pydicom is not installed.
        ValueError: If the source has no StudyInstanceUID or SOPInstanceUID to refer to.
    """
    try:
        from pydicom import Dataset, dcmread
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian
    except ImportError as error:
        msg = 'DICOM needs pydicom: pip install "anomalib-cxr[dicom]"'
        raise ImportError(msg) from error
    original = dcmread(source, force=True, stop_before_pixels=True)
    for keyword in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        if not original.get(keyword):
            msg = f"{source} has no {keyword}, so that no picture can be filed with it"
            raise ValueError(msg)

    capture = Dataset()
    file_beside(capture, original)
    for keyword in _OF_THE_FILM:
        if original.get(keyword):
            capture[keyword] = original[keyword]
    if "PatientOrientation" in original:
        capture["PatientOrientation"] = original["PatientOrientation"]
    else:
        capture.PatientOrientation = ""
    if "BodyPartExamined" not in capture and "Laterality" not in capture:
        capture.Laterality = ""  # it might be a paired part; PS3.3 table C.7-5a then wants to hear of it

    now = datetime.now(_time_zone(capture.get("TimezoneOffsetFromUTC")))
    capture.SOPClassUID = SECONDARY_CAPTURE
    capture.SOPInstanceUID = _uid(run, "instance", original.SOPInstanceUID, str(number))
    capture.Modality = "OT"
    capture.SeriesInstanceUID = _uid(run, "series", original.StudyInstanceUID)
    capture.SeriesNumber = 9000  # after those of the machines
    capture.SeriesDescription = "Anomaly heat map, not for diagnosis"
    capture.InstanceNumber = number
    capture.InstanceCreationDate = capture.ContentDate = now.strftime("%Y%m%d")
    capture.InstanceCreationTime = capture.ContentTime = now.strftime("%H%M%S")
    capture.Manufacturer = capture.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    capture.SoftwareVersions = capture.SecondaryCaptureDeviceSoftwareVersions = __version__
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.DerivationDescription = description[:1024]
    capture.ImageComments = "Derived by software for research. Not for diagnosis."
    if not_assessable:
        capture.ImageComments += f" Film not assessable: {not_assessable}."
    reference = Dataset()
    reference.ReferencedSOPClassUID = original.SOPClassUID
    reference.ReferencedSOPInstanceUID = original.SOPInstanceUID
    capture.SourceImageSequence = [reference]

    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.Rows, capture.Columns = picture.shape[:2]
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit = 7
    capture.PixelRepresentation = 0
    pixels = np.ascontiguousarray(picture).tobytes()
    capture.PixelData = pixels + b"\0" * (len(pixels) % 2)

    capture.file_meta = FileMetaDataset()
    capture.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    capture.file_meta.MediaStorageSOPClassUID = capture.SOPClassUID
    capture.file_meta.MediaStorageSOPInstanceUID = capture.SOPInstanceUID
    return capture


def is_own_capture(path: Path) -> bool:
    """Whether a file is a Secondary Capture that this package wrote.

    Args:
        path: Any file.

    Returns:
        False too for a file that cannot be read: its reader says what is wrong with it.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            if not is_dicom(file.read(132)):
                return False
        from pydicom import dcmread

        header = dcmread(path, specific_tags=["SOPClassUID", "Manufacturer"], stop_before_pixels=True)
        return (header.get("SOPClassUID"), header.get("Manufacturer")) == (SECONDARY_CAPTURE, MANUFACTURER)
    except Exception:  # noqa: BLE001  # pydicom raises whatever a broken file makes it stumble over
        return False


def new_run() -> str:
    """Name of a run that no other has."""
    return uuid.uuid4().hex


def _time_zone(offset: Any) -> tzinfo | None:
    """Zone of a TimezoneOffsetFromUTC like "+0100", which holds for all times of a file; None if it is none."""
    try:
        return datetime.strptime(str(offset), "%z").tzinfo
    except ValueError:
        return None


def _uid(*parts: Any) -> str:
    """Identifier that needs no registration: 2.25 and a UUID as a number (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}"
