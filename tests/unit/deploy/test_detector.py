"""The inferencer: numbers, folders, pictures, DICOM, and nothing heavy imported."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_films import PATIENT, ramp, write_dicom, write_png
from exported_by_hand import SIDE, metadata, write_onnx
from pydicom import dcmread
from pydicom.uid import generate_uid

from anomalib_cxr.deploy import ExportedDetector, Thresholds, overlay, predict_folder
from anomalib_cxr.deploy.__main__ import main
from anomalib_cxr.deploy.detector import Prediction
from anomalib_cxr.imaging import read_radiograph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "films"
    write_png(root / "dark.png", ramp(70, 50, 0.0, 0.6))
    write_png(root / "ward" / "bright.png", ramp(64, 64, 0.3, 1.0))
    write_dicom(root / "ward" / "one.dcm", ramp(90, 120, 0.2, 0.9))
    write_dicom(root / "ward" / "two.dcm", ramp(40, 40, 0.0, 0.3))
    (root / "broken.png").write_bytes((root / "dark.png").read_bytes()[:200])
    (root / "notes.txt").write_text("not a film")
    return root


@pytest.mark.parametrize("kind", ["onnx_model", "openvino_model"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_maps_and_decisions(kind: str, batch_size: int, request: pytest.FixtureRequest) -> None:
    detector = ExportedDetector(request.getfixturevalue(kind), threads=1, batch_size=batch_size)
    images = [ramp(SIDE, SIDE, 0.1 * i, 0.1 * i + 0.43) for i in range(5)]
    found = detector.predict(images)
    for image, prediction in zip(images, found, strict=True):
        assert prediction.score == pytest.approx(float(image.mean()), abs=1e-6)
        assert prediction.abnormal == (image.mean() > 0.5)
        np.testing.assert_allclose(prediction.heat_map, image, atol=1e-6)
        np.testing.assert_array_equal(prediction.mask, image > 0.5)


def test_openvino_takes_onnx_too_and_a_graph_of_fixed_size_is_fed_its_size(tmp_path: Path) -> None:
    path = write_onnx(tmp_path, size=(24, 40), described=metadata(input_size=[24, 40]))
    for runtime in (None, "openvino"):
        (found,) = ExportedDetector(path, runtime=runtime, threads=1).predict([ramp(100, 90, 0, 1)])
        assert found.heat_map.shape == (24, 40)
        assert found.score == pytest.approx(0.5, abs=1e-3)


def test_what_is_no_image_is_refused(onnx_model: Path) -> None:
    detector = ExportedDetector(onnx_model)
    assert detector.predict([]) == []
    for wrong in (np.zeros((3, 8, 8), np.float32), np.full((8, 8), np.nan, np.float32)):
        with pytest.raises(ValueError, match=r"must be a finite \(H, W\) array"):
            detector.predict([wrong])


def test_files_are_read_a_batch_at_a_time(onnx_model: Path, tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", ramp(40, 40, 0, 1))
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield path

    stream = ExportedDetector(onnx_model, batch_size=4).predict_files(endless())
    for _ in range(9):
        assert next(stream).error is None
    assert asked == 12


def test_folder_becomes_table_pictures_and_list_of_failures(onnx_model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = predict_folder(ExportedDetector(onnx_model, batch_size=2), folder, out, ("png", "dicom"), progress=False)
    assert done == (4, 2, 1, 1, 2, 0, None)
    with (out / "predictions.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["dark.png", "ward/bright.png", "ward/one.dcm", "ward/two.dcm"]
    for name, row in rows.items():
        # cv2's area mean over the whole image: resizing keeps means of ramps.
        assert float(row["score"]) == pytest.approx(float(read_radiograph(folder / name).mean()), abs=2e-3)
        assert row["decision"] == ("abnormal" if float(row["score"]) > 0.5 else "normal")
        assert cv2.imread(str(out / row["heat_map"])) is not None
        assert bool(row["secondary_capture"]) == name.endswith(".dcm")
    with (out / "unreadable.csv").open() as file:
        (failed,) = csv.DictReader(file)
    assert failed["image"] == "broken.png"
    assert "cannot be read as a radiograph" in failed["reason"]


def test_secondary_capture_stays_with_its_patient_and_study(onnx_model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_folder(ExportedDetector(onnx_model), folder, out, ("png", "dicom"), progress=False, names="hash")
    source = dcmread(folder / "ward" / "one.dcm")
    capture = dcmread(out / "secondary_captures" / "ward" / "one.dcm.dcm")
    for keyword in [*PATIENT, "StudyInstanceUID"]:
        assert capture[keyword].value == source[keyword].value, keyword
    assert str(capture.PatientName) == "Müller^Jürgen"
    assert capture.SOPClassUID == capture.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.7"
    assert capture.SOPInstanceUID not in {source.SOPInstanceUID, source.StudyInstanceUID}
    assert capture.SeriesInstanceUID != source.SeriesInstanceUID
    assert list(capture.ImageType) == ["DERIVED", "SECONDARY"]
    assert "not for diagnosis" in capture.SeriesDescription
    assert "Not for diagnosis" in capture.ImageComments
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "MeanBrightness" in capture.DerivationDescription
    # Without a body part the standard wants the laterality, be it unknown; dciodvfy finds no fault with the file then.
    assert "BodyPartExamined" not in capture
    assert capture.Laterality == ""
    # The pixels are those of the PNG.
    png = cv2.imread(str(out / "heat_maps" / "ward" / "one.dcm.png"))[..., ::-1]
    np.testing.assert_array_equal(capture.pixel_array, png)
    other = dcmread(out / "secondary_captures" / "ward" / "two.dcm.dcm")
    assert other.SOPInstanceUID != capture.SOPInstanceUID
    assert other.SeriesInstanceUID != capture.SeriesInstanceUID


def test_one_series_a_study_and_run(onnx_model: Path, tmp_path: Path) -> None:
    study = generate_uid()
    for name in ("a.dcm", "b.dcm"):
        write_dicom(tmp_path / "films" / name, ramp(40, 40, 0, 1), StudyInstanceUID=study)
    captures = []
    for run in ("first", "second"):
        predict_folder(ExportedDetector(onnx_model), tmp_path / "films", tmp_path / run, ["dicom"], progress=False)
        captures += [dcmread(path) for path in sorted((tmp_path / run / "secondary_captures").iterdir())]
    assert len({capture.SOPInstanceUID for capture in captures}) == 4
    series = [capture.SeriesInstanceUID for capture in captures]
    assert series[0] == series[1] != series[2] == series[3]
    assert [capture.InstanceNumber for capture in captures[:2]] == [1, 2]


def test_dicom_without_identifiers_is_scored_but_not_filed(
    onnx_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dicom(tmp_path / "films" / "a.dcm", ramp(40, 40, 0, 1), StudyInstanceUID=None, PatientID=None)
    done = predict_folder(ExportedDetector(onnx_model), tmp_path / "films", tmp_path / "out", ["dicom"], progress=False)
    assert (done.images, done.without_capture) == (1, 1)
    assert "has no StudyInstanceUID" in caplog.text


@pytest.mark.parametrize("offset", ["+1300", "-1130", "+0000"])
def test_times_of_a_capture_are_in_the_zone_of_its_film(onnx_model: Path, tmp_path: Path, offset: str) -> None:
    write_dicom(tmp_path / "films" / "a.dcm", ramp(40, 40, 0, 1), TimezoneOffsetFromUTC=offset)
    predict_folder(ExportedDetector(onnx_model), tmp_path / "films", tmp_path / "out", ["dicom"], progress=False)
    capture = dcmread(tmp_path / "out" / "secondary_captures" / "a.dcm.dcm")
    assert capture.TimezoneOffsetFromUTC == offset
    sign = -1 if offset[0] == "-" else 1
    expected = datetime.now(timezone.utc) + sign * timedelta(hours=int(offset[1:3]), minutes=int(offset[3:]))
    for stated in (
        capture.ContentDate + capture.ContentTime,
        capture.InstanceCreationDate + capture.InstanceCreationTime,
    ):
        found = datetime.strptime(stated, "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
        assert abs(found - expected) < timedelta(minutes=2)


def test_a_zone_that_is_none_is_not_copied(onnx_model: Path, tmp_path: Path) -> None:
    write_dicom(tmp_path / "films" / "a.dcm", ramp(40, 40, 0, 1), TimezoneOffsetFromUTC="CET")
    predict_folder(ExportedDetector(onnx_model), tmp_path / "films", tmp_path / "out", ["dicom"], progress=False)
    assert "TimezoneOffsetFromUTC" not in dcmread(tmp_path / "out" / "secondary_captures" / "a.dcm.dcm")


def test_another_sensitivity_is_what_the_table_and_the_pictures_go_by(tmp_path: Path) -> None:
    described = metadata(decision={"image": 0.3, "pixel": 0.2})
    detector = ExportedDetector(write_onnx(tmp_path / "model", described=described, threshold=0.3))
    assert detector.thresholds == (0.3, 0.2)
    write_png(tmp_path / "films" / "a.png", np.full((600, 600), 0.4, np.float32))
    predict_folder(detector, tmp_path / "films", tmp_path / "out", progress=False)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["threshold"], row["decision"]) == ("0.3", "abnormal")
    # At 0.4 a map is a quarter of the way from its threshold to 1: coloured, where it would be faint at 0.5.
    picture = cv2.imread(str(tmp_path / "out" / row["heat_map"]))[..., ::-1]
    same = overlay(
        read_radiograph(tmp_path / "films" / "a.png"),
        Prediction(0.4, True, np.full((SIDE, SIDE), 0.625, np.float32), np.ones((SIDE, SIDE), bool)),
        "MeanBrightness",
    )
    np.testing.assert_allclose(picture[:600, :600].astype(int), same[:600, :600], atol=1)
    assert (picture[600:670] != same[600:670]).any()  # the lines below state the threshold
    assert (picture[:600, 600:] != same[:600, 600:]).any()  # and so does the bar


@pytest.mark.parametrize("pixel", [0.0, 0.3, 0.5, 1.0])
def test_colour_begins_at_the_threshold(pixel: float) -> None:
    image = np.full((8, 8), 0.5, np.float32)
    heat = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    picture = overlay(image, Prediction(0.7, True, heat, heat > pixel), "X", Thresholds(0.5, pixel))
    picture = picture[:8, :8].astype(int)
    colour = np.ptp(picture, axis=2)
    assert (colour[heat < 0.7 * pixel] == 0).all()
    plain = overlay(image, Prediction(0.7, True, heat, heat > pixel), "X")[:8, :8].astype(int)
    assert (picture == plain).all() == (pixel == 0.5)


def test_overlay_shows_where() -> None:
    heat = np.zeros((16, 16), np.float32)
    heat[4:8, 8:12] = 0.9
    image = np.full((64, 64), 0.5, np.float32)
    picture = overlay(image, Prediction(0.7, True, heat, heat > 0.5), "X").astype(int)
    film = picture[:64, :64]
    colour = np.abs(film - film.mean(axis=2, keepdims=True)).max(axis=2)
    assert colour[20:28, 36:44].min() > 20
    assert colour[40:, :20].max() == 0
    assert film[40:, :20].max() == 128
    assert picture[64:].max() > 100
    wide = overlay(ramp(300, 3000, 0, 1), Prediction(0.7, True, heat, heat > 0.5), "X")
    assert (wide[:102, 1024:1028] == 0).all(), "a gap, then the bar"
    assert wide[101, 1023, 0] > 240, "the film's lower right corner is bright"


def test_the_lines_below_name_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def picture(image: np.ndarray, heat: np.ndarray, lines: list[str], *rest: float) -> np.ndarray:
        written.extend(lines)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setitem(overlay.__globals__, "heat_map_picture", picture)
    heat = np.full((4, 4), 0.9, np.float32)
    prediction = Prediction(0.71234, True, heat, heat > 0.5)
    overlay(np.zeros((32, 32), np.float32), prediction, "X", name="a/b.dcm", p_value=0.01, outside=True)
    assert written[:4] == [
        "NOT FOR DIAGNOSIS",
        "a/b.dcm",
        "abnormal, outside of what the model knows",
        "score 0.712, threshold 0.500, p 0.010",
    ]
    assert written[4].endswith("map smoothed for display")
    assert (prediction.heat_map == np.float32(0.9)).all(), "what is exported is not smoothed"


@pytest.mark.parametrize("names", ["path", "hash"])
def test_pictures_of_a_folder_carry_names_and_captures_never_do(
    onnx_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    pytest.importorskip("pydicom")
    shown: list[str] = []

    def drawn(
        image: np.ndarray, prediction: Prediction, model: str, thresholds: Thresholds, name: str, *p_value: object
    ) -> np.ndarray:
        shown.append(name)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("anomalib_cxr.deploy.folder.overlay", drawn)
    predict_folder(ExportedDetector(onnx_model), folder, tmp_path / "out", ["png", "dicom"], False, names)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    hashes = {row["image"]: hashlib.sha256(row["image"].encode()).hexdigest()[:10] for row in rows}
    expected = []
    for row in rows:
        expected.append(row["image"] if names == "path" else hashes[row["image"]])
        expected += [hashes[row["image"]]] if row["secondary_capture"] else []
    assert shown == expected
    assert any(row["secondary_capture"] for row in rows)
    with pytest.raises(ValueError, match="names must be one of 'path', 'hash', not 'none'"):
        predict_folder(ExportedDetector(onnx_model), folder, tmp_path / "other", ["png"], False, "none")
    assert not (tmp_path / "other").exists()


def test_faults_of_folders(onnx_model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = ExportedDetector(onnx_model)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a file"):
        predict_folder(detector, tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"There is no radiograph below .*: 0 files are none"):
        predict_folder(detector, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="heat maps would be taken for radiographs"):
        predict_folder(detector, folder, folder / "out")
    predict_folder(detector, folder / "dark.png", tmp_path / "out", (), progress=False)
    with pytest.raises(FileExistsError, match=r"predictions\.csv exists"):
        predict_folder(detector, folder, tmp_path / "out")
    assert not (tmp_path / "out" / "heat_maps").exists()
    monkeypatch.setattr("anomalib_cxr.deploy.folder.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="Secondary Captures need pydicom"):
        predict_folder(detector, folder, tmp_path / "other", ["dicom"])
    assert not (tmp_path / "other").exists()


def test_command(onnx_model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(onnx_model), str(folder), "-o", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "4 images scored, 2 judged abnormal" in out
    assert "1 files could not be read" in err
    (folder / "broken.png").unlink()
    assert main([str(onnx_model), str(folder), "-o", str(tmp_path / "again"), "--pictures"]) == 0
    assert main([str(tmp_path / "model.pt"), str(folder), "-o", str(tmp_path / "third")]) == 2
    assert "anomalib-cxr-infer: " in capsys.readouterr().err


HEAVY = ("torch", "torchvision", "lightning", "anomalib", "timm", "kornia", "pandas", "scipy", "sklearn", "skimage")


def test_import_is_quick_and_brings_nothing_heavy() -> None:
    script = """
import json, sys, time
start = time.process_time()
import anomalib_cxr.deploy
print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
"""
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    loaded = {name.split(".")[0] for name in runs[0][1]}
    assert loaded >= {"numpy", "cv2"}
    assert not loaded & {*HEAVY, "onnx", "onnxruntime", "openvino", "pydicom"}
    # Processor time of this import alone, which other work on the machine hardly changes.
    assert min(seconds for seconds, _ in runs) < 1.0


def test_memory_does_not_grow_with_the_number_of_films(onnx_model: Path, tmp_path: Path) -> None:
    film = write_png(tmp_path / "film.png", ramp(256, 256, 0.1, 0.9))
    detector = ExportedDetector(onnx_model, threads=1, batch_size=2)

    def peak(count: int) -> int:
        folder = tmp_path / f"films_{count}"
        folder.mkdir()
        for i in range(count):
            (folder / f"{i}.png").hardlink_to(film)
        tracemalloc.start()
        try:
            done = predict_folder(detector, folder, tmp_path / f"out_{count}", progress=False)
            assert done.images == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is loaded on first use
    one_film = 256 * 256 * 4
    few, many = peak(20), peak(200)
    assert few > 2 * one_film  # arrays are seen
    assert many - few < 2 * one_film


@pytest.mark.parametrize("kind", ["onnx_model", "openvino_model"])
def test_runs_where_torch_lightning_and_anomalib_are_missing(
    kind: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arguments = [str(request.getfixturevalue(kind)), str(folder), "-o", str(tmp_path / "out")]
    script = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # an import raises ImportError
from anomalib_cxr.deploy.__main__ import main
status = main({[*arguments, "--pictures", "png", "dicom"]!r})
runtimes = {{"onnxruntime", "openvino", "onnx"}} & sys.modules.keys()
assert len(runtimes) == 1, runtimes
sys.exit(status)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1, done.stderr  # one file is broken
    assert "4 images scored" in done.stdout


def test_stated_size_is_used(tmp_path: Path) -> None:
    path = write_onnx(tmp_path, described=metadata(input_size=[20, 44]))
    assert ExportedDetector(path).predict([ramp(50, 60, 0, 1)])[0].heat_map.shape == (20, 44)


@pytest.mark.parametrize("kind", ["onnx_model", "openvino_model"])
def test_a_score_that_is_nan_is_no_prediction(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The graph by hand gives NaN for a black film, with a finite map and the decision normal."""
    detector = ExportedDetector(request.getfixturevalue(kind), threads=1)
    with pytest.raises(ValueError, match="Image 1 cannot be scored: the model's score or heat map is not finite"):
        detector.predict([ramp(SIDE, SIDE, 0.1, 0.9), np.zeros((SIDE, SIDE), np.float32)])
    black = write_png(tmp_path / "black.png", np.zeros((SIDE, SIDE), np.float32))
    (found,) = detector.predict_files([black])
    assert found.prediction is None
    assert "cannot be scored" in str(found.error)
