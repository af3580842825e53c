"""Films drawn as ramps of brightness, as 16-bit PNG and as DICOM with a patient."""

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

PATIENT = {
    "SpecificCharacterSet": "ISO_IR 100",
    "PatientName": "Müller^Jürgen",
    "PatientID": "4711",
    "PatientBirthDate": "19500102",
    "PatientSex": "M",
    "AccessionNumber": "A-17",
    "StudyID": "S1",
    "StudyDate": "20240203",
    "StudyTime": "101112",
    "ReferringPhysicianName": "Curie^Marie",
}


def ramp(height: int, width: int, low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, height * width, dtype=np.float32).reshape(height, width)


def write_png(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(image * 65535).astype(np.uint16)).save(path)
    return path


def write_dicom(path: Path, image: np.ndarray, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    for keyword, value in (
        PATIENT
        | {
            "StudyInstanceUID": generate_uid(),
            "SeriesInstanceUID": generate_uid(),
            "SOPInstanceUID": generate_uid(),
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
            "Modality": "DX",
            "PatientOrientation": ["L", "F"],
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": image.shape[0],
            "Columns": image.shape[1],
            "BitsAllocated": 16,
            "BitsStored": 12,
            "HighBit": 11,
            "SamplesPerPixel": 1,
            "PixelRepresentation": 0,
            "PixelData": np.rint(image * 4095).astype("<u2").tobytes(),
        }
        | changes
    ).items():
        if value is not None:
            setattr(data, keyword, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True) if changes.get("SOPInstanceUID", 1) else data.save_as(path)
    return path
