"""An exported model that knows which films it may judge, and one that does not; limits are on brightness alone."""

import csv
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_films import ramp, write_dicom, write_png
from exported_by_hand import metadata, write_onnx
from limits_by_hand import too_bright_above
from pydicom import dcmread

from anomalib_cxr.anatomy.assessable import Assessment
from anomalib_cxr.deploy import ExportedDetector, ExportedModelError, Site, overlay, predict_folder
from anomalib_cxr.deploy.__main__ import main
from anomalib_cxr.deploy.judge import Judge, Verdict


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "limited", described=metadata(film_limits=too_bright_above(0.7)))


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    write_png(folder / "dark.png", ramp(40, 40, 0.0, 0.6))
    write_png(folder / "light.png", ramp(40, 40, 0.4, 0.9))
    write_dicom(folder / "bright.dcm", ramp(40, 40, 0.7, 1.0))
    return folder


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_each_film_is_assessed_and_no_score_changes(
    model: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []
    drawing = overlay.__globals__
    draw = drawing["heat_map_picture"]
    monkeypatch.setitem(drawing, "heat_map_picture", lambda *given: shown.append(list(given[2])) or draw(*given))
    assert main([str(model), str(films), "-o", str(tmp_path / "out"), "--pictures", "png", "dicom"]) == 0
    assert "3 images scored, 1 judged abnormal, 1 not assessable" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    found = {name: (row["decision"], row["assessable"], row["not_assessable_because"]) for name, row in rows.items()}
    assert found == {
        "dark.png": ("normal", "yes", ""),
        "light.png": ("abnormal", "yes", ""),
        "bright.dcm": ("not assessable", "no", "too bright"),
    }
    capture = dcmread(tmp_path / "out" / "secondary_captures" / "bright.dcm.dcm")
    assert capture.ImageComments.endswith("Not for diagnosis. Film not assessable: too bright.")
    for lines in shown:
        assert ("not assessable: too bright" in lines) == (
            f"score {float(rows['bright.dcm']['score']):.3f}" in lines[3]
        )
    assert len(shown) == 4  # the DICOM film's twice
    plain = write_onnx(tmp_path / "plain")
    predict_folder(ExportedDetector(plain, threads=1), films, tmp_path / "before", (), progress=False)
    before = rows_of(tmp_path / "before" / "predictions.csv")
    assert {name: row["score"] for name, row in before.items()} == {name: row["score"] for name, row in rows.items()}
    assert before["bright.dcm"]["decision"] == "abnormal"


def test_a_model_without_limits_says_nothing_and_so_it_says(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert main([str(write_onnx(tmp_path / "old")), str(films), "-o", str(tmp_path / "out"), "--pictures"]) == 0
    assert caplog.text.count("Films are not assessed") == 1
    assert "2 judged abnormal; results" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out" / "predictions.csv").values()
    assert {(row["assessable"], row["not_assessable_because"]) for row in rows} == {("", "")}


@pytest.mark.parametrize("record", [{"format": 99}, {}, "text", too_bright_above(0.5) | {"limit": None}])
def test_damaged_limits_are_refused(record: Any, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "damaged", described=metadata(film_limits=record))
    with pytest.raises(ExportedModelError, match="cannot assess films: Limits of films are"):
        ExportedDetector(path)


def test_a_site_keeps_what_is_not_assessable(model: Path) -> None:
    detector = ExportedDetector(model, threads=1)
    site = Site("MeanBrightness", detector.metadata["file_sha256"], tuple(0.3 + 0.01 * n for n in range(20)))
    judge = Judge(detector, site, 0.1)
    bright, dark = detector.predict([ramp(40, 40, 0.7, 1.0), ramp(40, 40, 0.0, 0.5)])
    found = judge(bright.score, bright.abnormal, bright.assessment)
    assert (found.decision, found.abnormal, found.p_value) == ("not assessable", True, pytest.approx(1 / 21))
    assert judge(dark.score, dark.abnormal, dark.assessment).decision == "normal"
    assert Verdict(False, assessment=Assessment(False, "turned")).decision == "not assessable"
    assert Verdict(True).decision == "abnormal"


def test_a_film_is_looked_at_as_the_model_sees_it(model: Path) -> None:
    """At its input size, where a training run has looked at it too."""
    detector = ExportedDetector(model, threads=1)
    assert detector.limits is not None
    seen: list[tuple[int, ...]] = []
    assess = detector.limits.assess
    object.__setattr__(detector.limits, "assess", lambda film: seen.append(film.shape) or assess(film))
    found = detector.predict([ramp(100, 60, 0.7, 1.0), ramp(32, 32, 0.1, 0.2)])
    assert [prediction.assessment for prediction in found] == [Assessment(False, "too bright"), Assessment(True)]
    assert seen == [(32, 32)] * 2


def test_films_are_assessed_where_torch_and_its_like_are_missing() -> None:
    script = """
import sys
for name in ("torch", "torchvision", "lightning", "anomalib", "pandas", "scipy", "sklearn", "skimage"):
    sys.modules[name] = None  # an import raises ImportError
import numpy as np
from anomalib_cxr.anatomy.assessable import FilmLimits
films = np.random.default_rng(0).random((20, 32, 32), np.float32)
limits = FilmLimits.from_films(films)
print(limits.assess(np.zeros((32, 32), np.float32)).assessable)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_the_inferencer_says_not_assessable_as_numpy_does(model: Path) -> None:
    detector = ExportedDetector(model, threads=1)
    for mean in np.linspace(0.6, 0.8, 9):
        if abs(mean - 0.7) > 1e-3:
            (found,) = detector.predict([np.full((48, 48), mean, np.float32)])
            assert found.assessment == Assessment(mean <= 0.7, "too bright" if mean > 0.7 else "")
