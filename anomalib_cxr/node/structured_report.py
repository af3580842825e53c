"""A finding as a Structured Report (TID 1500): each number with its code and unit."""

import math
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from anomalib_cxr.deploy.secondary_capture import MANUFACTURER
from anomalib_cxr.node.finding import Finding
from anomalib_cxr.node.highdicom_objects import SERIES, code, evidence, finish

if TYPE_CHECKING:
    from pydicom import Dataset


def structured_report(finding: Finding) -> "Dataset":
    """Write score, p-value, threshold, decision, model and calibration of the site as a report.

    A film that is not assessable is called so in place of normal or abnormal, each reason being a code of its own.

    It is marked as partial, preliminary and unverified, and says in its title of the series that it is not for
    diagnosis. Numbers and their units: score, threshold, p-value and false-positive rate in 1 (UCUM), films of the
    site in {films}. What is not known, such as a p-value without a site, is left out.

    Args:
        finding: What was found.

    Returns:
        A Comprehensive SR; its identifiers follow from film and model.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    film, judge = evidence(finding), finding.model.judge
    no_unit, films = codes.UCUM.NoUnits, sr.CodedConcept("{films}", "UCUM", "films")
    site = judge.site
    numbers = [
        (code("score", "Anomaly score"), finding.prediction.score, no_unit),
        (code("p-value", "P-value among normal films of the site"), finding.verdict.p_value, no_unit),
        (code("threshold", "Threshold of the anomaly score"), judge.threshold, no_unit),
        (code("rate", "False-positive rate of the threshold at the site"), judge.rate if site else None, no_unit),
        (code("site-films", "Normal films of the site's calibration"), len(site.scores) if site else None, films),
    ]
    measurements = [
        sr.Measurement(name=name, value=float(f"{value:.7g}"), unit=unit)
        for name, value, unit in numbers
        if value is not None and math.isfinite(value)
    ]
    not_assessable = finding.verdict.not_assessable
    decided = codes.SCT.Abnormal if finding.verdict.abnormal else codes.SCT.Normal
    if not_assessable:
        decided = code("not-assessable", "Film not assessable, whatever its score")
    reasons = [
        sr.QualitativeEvaluation(code("because", "Why the film is not assessable"), _reason(reason))
        for reason in not_assessable.split("; ")
        if reason
    ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=finding.uid("tracking"), identifier="anomaly of the whole film"),
        algorithm_id=sr.AlgorithmIdentification(
            name=finding.model.kind, version=finding.model.version, manufacturer=MANUFACTURER,
            parameters=[f"model SHA-256 {finding.model.sha256}"],
        ),
        measurements=measurements,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(code("decision", "Decision by the threshold, not for diagnosis"), decided),
            *reasons,
        ],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(film)],
    )  # fmt: skip
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=finding.uid("device", finding.model.sha256),
            name="anomalib-cxr-node",
            manufacturer_name=MANUFACTURER,
            model_name=finding.model.kind,
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=sr.CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[group],
    )
    report = sr.ComprehensiveSR(
        evidence=[film],
        content=content[0],
        series_instance_uid=finding.uid("report series", film.StudyInstanceUID),
        series_number=SERIES["report"],
        sop_instance_uid=finding.uid("report"),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    return finish(report, finding, "Anomaly score, not for diagnosis")


def _reason(reason: str) -> Any:
    """A reason in plain words as a code, whose value has 16 characters at most (PS3.3 table 8.8-1)."""
    return code(f"because-{sha256(reason.encode()).hexdigest()[:8]}", reason)
