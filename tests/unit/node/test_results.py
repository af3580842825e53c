"""What is sent: patient and study of the film, numbers with code and unit, the region at the film's geometry."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawn_films import PATIENT, ramp, write_dicom
from exported_by_hand import write_onnx
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO

from anomalib_cxr.deploy import ExportedDetector, Site
from anomalib_cxr.imaging import read_radiograph
from anomalib_cxr.node.arriving import look_at
from anomalib_cxr.node.configuration import Model
from anomalib_cxr.node.finding import Finding
from anomalib_cxr.node.results import MAKERS
from anomalib_cxr.node.shelf import LoadedModel

Find = Callable[..., Finding]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """A finding on a drawn film, at a site of 20 films."""

    def make(image: np.ndarray, site: bool = True, rate: float = 0.1, **header: object) -> Finding:
        path = write_dicom(tmp_path / "film.dcm", image, **header)
        model = write_onnx(tmp_path / "model")
        if site:
            scores = tuple(0.4 + 0.01 * number for number in range(20))
            Site("MeanBrightness", ExportedDetector(model).metadata["file_sha256"], scores).save(tmp_path / "site.json")
        loaded = LoadedModel(Model("mean", model, tmp_path / "site.json" if site else None, rate, threads=1))
        image = read_radiograph(path)
        (prediction,) = loaded.detector.predict([image])
        verdict = loaded.judge(prediction.score, prediction.abnormal)
        return Finding(path, look_at(path.read_bytes()).header, image, loaded, prediction, verdict)

    return make


def written(made: Dataset) -> Dataset:
    """The object as it is read from its file."""
    content = DicomBytesIO()
    made.save_as(content, enforce_file_format=True)
    content.seek(0)
    return dcmread(content)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_every_kind_joins_the_study_and_has_identifiers_of_film_and_model(find: Find, kind: str) -> None:
    finding = find(ramp(40, 36, 0.3, 0.9))
    made = MAKERS[kind](finding)  # type: ignore[index]
    assert made is not None
    result, film = written(made), dcmread(finding.path)
    for keyword in ("StudyInstanceUID", *PATIENT):
        assert result[keyword].value == film[keyword].value, keyword
    again = MAKERS[kind](finding)  # type: ignore[index]
    assert again is not None
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert result[keyword].value == again[keyword].value != film[keyword].value
    assert "not for diagnosis" in result.SeriesDescription
    assert result.Manufacturer == "anomalib-cxr"
    assert film.SOPInstanceUID in str(result)  # it refers to the film


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize(
    "odd",
    [
        {"PatientName": "<script>alert(1)</script>", "PatientSex": "unknown!", "PatientBirthDate": "yesterday"},
        {"StudyDate": "2024-02-03", "StudyTime": "25:99", "StudyID": "x" * 100, "AccessionNumber": "../../etc"},
        dict.fromkeys(PATIENT),
        {"Modality": "DX", "TimezoneOffsetFromUTC": "+9999"},
    ],
    ids=["patient", "study", "none", "zone"],
)
def test_an_odd_header_costs_no_result(find: Find, kind: str, odd: dict) -> None:
    made = MAKERS[kind](find(ramp(40, 36, 0.3, 0.9), **odd))  # type: ignore[index]
    assert made is not None
    result = written(made)
    for keyword in odd.keys() & PATIENT.keys() - {"SpecificCharacterSet"}:
        assert str(result[keyword].value) == (odd[keyword] or "")


def items(node: Dataset) -> list[Dataset]:
    """All content items below one."""
    return [item for child in node.get("ContentSequence", []) for item in (child, *items(child))]


def numbers(report: Dataset) -> dict[str, tuple[float, str]]:
    """Value and unit of each number, by its code."""
    return {
        item.ConceptNameCodeSequence[0].CodeValue: (
            float(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in items(report)
        if item.ValueType == "NUM"
    }


def test_the_report_states_each_number_with_its_unit(find: Find) -> None:
    finding = find(ramp(40, 36, 0.3, 0.9))
    report = written(MAKERS["report"](finding) or Dataset())
    assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    found = numbers(report)
    assert found["score"] == (pytest.approx(finding.prediction.score, abs=1e-6), "1")
    assert found["p-value"] == (pytest.approx(1 / 21, abs=1e-6), "1")  # higher than all 20 films of the site
    assert found["threshold"] == (pytest.approx(0.58), "1")  # the second highest of 20, for 10 %
    assert found["rate"] == (0.1, "1")
    assert found["site-films"] == (20, "{films}")
    (decision,) = (item for item in items(report) if item.ConceptNameCodeSequence[0].CodeValue == "decision")
    assert decision.ConceptCodeSequence[0].CodeMeaning == "Abnormal"
    texts = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.TextValue for item in items(report) if "TextValue" in item
    }
    assert texts["Algorithm Name"] == "MeanBrightness"
    assert finding.model.sha256 in " ".join(texts.values())
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    schemes = {item.CodingSchemeDesignator for item in report.CodingSchemeIdentificationSequence}
    assert schemes == {"99ACXR"}


def test_the_report_leaves_out_what_is_not_known(find: Find) -> None:
    found = numbers(written(MAKERS["report"](find(ramp(40, 36, 0.1, 0.5), site=False)) or Dataset()))
    assert set(found) == {"score", "threshold"}
    few = find(ramp(40, 36, 0.1, 0.5), rate=0.01)  # 20 films promise no 1 %
    assert few.model.judge.threshold == math.inf
    assert set(numbers(written(MAKERS["report"](few) or Dataset()))) == {"score", "p-value", "rate", "site-films"}


def test_the_segmentation_is_what_lies_above_the_threshold(find: Find) -> None:
    image = np.full((64, 96), 0.2, np.float32)
    image[16:32, 60:84] = 0.9
    finding = find(image)
    result = written(MAKERS["segmentation"](finding) or Dataset())
    assert (result.Rows, result.Columns) == image.shape
    mask = np.unpackbits(np.frombuffer(result.PixelData, np.uint8), bitorder="little")[: image.size]
    inside = mask.reshape(image.shape).astype(bool)
    truth = image > 0.5
    # The map has 32 x 32 pixels: a rim of two or three of the film's is not to be told.
    assert (inside & truth).sum() / (inside | truth).sum() > 0.8
    (series,) = result.ReferencedSeriesSequence
    assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == finding.header.SOPInstanceUID
    assert MAKERS["segmentation"](find(np.full((64, 96), 0.2, np.float32))) is None  # nothing to outline
