"""Anomalib's image item and batch, with the patient and the findings of each image.

Anomalib's dataclasses have no room for them, and metrics by finding see nothing but batches. The fields are the texts
of the samples table, so they pass every step that leaves an image's path as it is: collation, transfer to a device, the
model's own update, post-processing, pictures.
"""

from dataclasses import dataclass
from typing import ClassVar

from anomalib.data import ImageBatch, ImageItem, NumpyImageBatch, NumpyImageItem


@dataclass
class NumpyRadiographItem(NumpyImageItem):
    """One radiograph as numpy arrays; fields as in :class:`RadiographItem`."""

    patient_id: str | None = None
    findings: str | None = None


@dataclass
class NumpyRadiographBatch(NumpyImageBatch):
    """Radiographs as numpy arrays; fields as in :class:`RadiographBatch`."""

    item_class: ClassVar[type[NumpyImageItem]] = NumpyRadiographItem
    patient_id: list[str] | None = None
    findings: list[str] | None = None


@dataclass
class RadiographItem(ImageItem):
    """One radiograph.

    Attributes:
        patient_id: Patient, "" where unknown; None if the table has no such column.
        findings: Findings joined by "|", "" for none; None if the table has no such column.
    """

    numpy_class: ClassVar[type[NumpyImageItem]] = NumpyRadiographItem
    patient_id: str | None = None
    findings: str | None = None


@dataclass
class RadiographBatch(ImageBatch):
    """B radiographs.

    Attributes:
        patient_id: (B,) patient of each, as in :class:`RadiographItem`.
        findings: (B,) findings of each, as in :class:`RadiographItem`.
    """

    item_class: ClassVar[type[ImageItem]] = RadiographItem
    numpy_class: ClassVar[type[NumpyImageBatch]] = NumpyRadiographBatch
    patient_id: list[str] | None = None
    findings: list[str] | None = None
