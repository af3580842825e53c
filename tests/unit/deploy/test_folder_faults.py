"""Nothing that is wrong with one file ends a run, and nothing is lost of a run that is cut off."""

import csv
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from drawn_films import ramp, write_dicom, write_png
from pydicom import Dataset, dcmread

from anomalib_cxr.data.files import scan_images
from anomalib_cxr.deploy import ExportedDetector, folder, predict_folder
from anomalib_cxr.deploy.detector import FilePrediction
from anomalib_cxr.imaging import radiograph


@pytest.fixture
def films(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "ward/c.png"):
        write_png(tmp_path / "films" / name, ramp(40, 40, 0.2, 0.9))
    return tmp_path / "films"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_names_that_are_no_utf8_stand_in_the_tables_as_they_are(onnx_model: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    good = write_png(films / os.fsdecode(b"J\xfcrgen.png"), ramp(40, 40, 0.2, 0.9))
    (films / os.fsdecode(b"kaputt\xff.png")).write_bytes(good.read_bytes()[:200])
    done = predict_folder(ExportedDetector(onnx_model), films, tmp_path / "out", progress=False)
    assert (done.images, done.unreadable) == (1, 1)
    assert b"\nJ\xfcrgen.png," in (tmp_path / "out" / "predictions.csv").read_bytes()
    assert b"\nkaputt\xff.png," in (tmp_path / "out" / "unreadable.csv").read_bytes()
    assert [os.fsencode(path.name) for path in (tmp_path / "out" / "heat_maps").iterdir()] == [b"J\xfcrgen.png.png"]


def test_a_score_that_is_no_number_is_no_finding(onnx_model: Path, films: Path, tmp_path: Path) -> None:
    black = write_png(films / "black.png", np.zeros((40, 40), np.float32))  # 0 / 0 in the graph
    detector = ExportedDetector(onnx_model, batch_size=3)
    done = predict_folder(detector, films, tmp_path / "out", progress=False)
    assert (done.images, done.abnormal, done.unreadable) == (3, 3, 1)
    assert "black.png" not in [row["image"] for row in rows(tmp_path / "out" / "predictions.csv")]
    (failed,) = rows(tmp_path / "out" / "unreadable.csv")
    assert failed["image"] == "black.png"
    assert failed["reason"] == f"{black} cannot be scored: the model's score or heat map is not finite"
    assert not (tmp_path / "out" / "heat_maps" / "black.png.png").exists()
    with pytest.raises(ValueError, match="Image 1 cannot be scored: the model's score or heat map is not finite"):
        detector.predict([ramp(40, 40, 0, 1), np.zeros((40, 40), np.float32)])


def test_a_film_that_may_not_be_read(
    onnx_model: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = radiograph._head

    def refused(path: Path) -> bytes:
        if path.name == "b.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return head(path)

    monkeypatch.setattr(radiograph, "_head", refused)
    done = predict_folder(ExportedDetector(onnx_model), films, tmp_path / "out", progress=False)
    assert (done.images, done.unreadable) == (2, 1)
    (failed,) = rows(tmp_path / "out" / "unreadable.csv")
    assert failed["image"] == "b.png"
    assert "Permission denied" in failed["reason"]


def test_a_folder_that_may_not_be_opened_is_listed(
    onnx_model: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refused(path: str) -> Iterator[os.DirEntry]:
        if Path(path).name == "ward":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    done = predict_folder(ExportedDetector(onnx_model), films, tmp_path / "out", progress=False)
    assert (done.images, done.unreadable) == (2, 1)
    assert rows(tmp_path / "out" / "unreadable.csv") == [
        {"image": "ward", "reason": f"{films / 'ward'} cannot be opened: Permission denied"}
    ]


def test_what_is_named_like_a_film_but_is_no_file(onnx_model: Path, films: Path, tmp_path: Path) -> None:
    os.mkfifo(films / "pipe.dcm")  # whoever opens it waits for ever
    (films / "gone.png").symlink_to(films / "nowhere.png")
    done = predict_folder(ExportedDetector(onnx_model), films, tmp_path / "out", progress=False)
    assert (done.images, done.unreadable) == (3, 2)
    reasons = {row["image"]: row["reason"] for row in rows(tmp_path / "out" / "unreadable.csv")}
    assert reasons["pipe.dcm"].endswith("it is not a file")
    assert reasons["gone.png"].endswith("there is no such file")


def test_a_folder_of_a_mac_is_listed_as_the_data_sets_list_it(onnx_model: Path, films: Path, tmp_path: Path) -> None:
    for copy in ("._a.png", ".Trashes/a.png", "__MACOSX/._a.png", "__MACOSX/ward/c.png"):
        (films / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(films / "a.png", films / copy)
    write_png(tmp_path / "elsewhere" / "d.png", ramp(40, 40, 0.2, 0.9))
    (films / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (films / "ward" / "round").symlink_to(films, target_is_directory=True)
    done = predict_folder(ExportedDetector(onnx_model), films, tmp_path / "out", progress=False)
    found = [row["image"] for row in rows(tmp_path / "out" / "predictions.csv")]
    assert found == ["a.png", "b.png", "linked/d.png", "ward/c.png"] == scan_images(films).images
    assert (done.images, done.unreadable, done.ignored) == (4, 0, 1)
    with pytest.raises(ValueError, match=r"lies in .*: its heat maps would be taken for radiographs"):
        predict_folder(ExportedDetector(onnx_model), films, tmp_path / "elsewhere" / "out", progress=False)


def test_a_film_that_breaks_while_it_is_drawn_keeps_its_score(
    onnx_model: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def half(path: Path, picture: np.ndarray) -> None:
        drawn.append(path)
        path.write_bytes(b"half")
        if len(drawn) == 2:
            raise MemoryError

    monkeypatch.setattr(folder, "save_png", half)
    done = predict_folder(ExportedDetector(onnx_model), films, tmp_path / "out", progress=False)
    assert (done.images, done.unreadable) == (3, 1)
    heat_maps = {row["image"]: row["heat_map"] for row in rows(tmp_path / "out" / "predictions.csv")}
    assert heat_maps == {
        "a.png": "heat_maps/a.png.png",
        "b.png": "",
        "ward/c.png": "heat_maps/ward/c.png.png",
    }
    (failed,) = rows(tmp_path / "out" / "unreadable.csv")
    assert failed["image"] == "b.png"
    assert failed["reason"].endswith("was scored, but its pictures were not made: MemoryError")
    left = sorted(path.name for path in (tmp_path / "out" / "heat_maps").rglob("*") if path.is_file())
    assert left == ["a.png.png", "c.png.png"]


def test_a_film_whose_capture_breaks_keeps_its_heat_map(
    onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.dcm", "b.dcm"):
        write_dicom(tmp_path / "films" / name, ramp(40, 40, 0, 1), PatientID=name)
    save = Dataset.save_as

    def half(data: Dataset, path: Path, **arguments: bool) -> None:
        save(data, path, **arguments)
        if data.PatientID == "a.dcm":
            raise UnicodeEncodeError("latin-1", "Ł", 0, 1, "not in this character set")

    monkeypatch.setattr(Dataset, "save_as", half)
    out = tmp_path / "out"
    done = predict_folder(ExportedDetector(onnx_model), tmp_path / "films", out, ["png", "dicom"], progress=False)
    assert (done.images, done.unreadable, done.without_capture) == (2, 1, 1)
    first, second = rows(out / "predictions.csv")
    assert (first["heat_map"], first["secondary_capture"]) == ("heat_maps/a.dcm.png", "")
    assert second["secondary_capture"] == "secondary_captures/b.dcm.dcm"
    assert [path.name for path in (out / "secondary_captures").iterdir()] == ["b.dcm.dcm"]
    (failed,) = rows(out / "unreadable.csv")
    assert failed["image"] == "a.dcm"
    assert "not in this character set" in failed["reason"]


def test_a_run_that_is_cut_off_leaves_both_tables(
    onnx_model: Path, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (films / "broken.png").write_bytes(b"\x89PNG")
    detector = ExportedDetector(onnx_model)
    stream, out = detector.predict_files, tmp_path / "out"
    seen: list[tuple[list[str], list[str]]] = []

    def images(table: str) -> list[str]:
        return [row["image"] for row in rows(out / table)]

    def interrupted(paths: Iterator[Path]) -> Iterator[FilePrediction]:
        for number, found in enumerate(stream(paths)):
            seen.append((images("predictions.csv"), images("unreadable.csv")))
            if number == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(detector, "predict_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(detector, films, out, progress=False)
    # As they were on disk before each file, sorted: a, b, broken, ward/c.
    assert seen == [([], []), (["a.png"], []), (["a.png", "b.png"], []), (["a.png", "b.png"], ["broken.png"])]
    assert images("predictions.csv") == ["a.png", "b.png"]


def test_our_own_captures_are_no_films(onnx_model: Path, tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_dicom(films / "a.dcm", ramp(40, 40, 0.2, 0.9))
    detector = ExportedDetector(onnx_model)
    assert predict_folder(detector, films, tmp_path / "first", ["dicom"], progress=False).own_captures == 0
    ours = tmp_path / "first" / "secondary_captures" / "a.dcm.dcm"
    shutil.copy(ours, films / "archive.dcm")
    theirs = dcmread(ours)
    theirs.Manufacturer = "Another"  # a digitised film, perhaps
    theirs.save_as(films / "theirs.dcm")
    done = predict_folder(detector, films, tmp_path / "second", progress=False)
    assert (done.images, done.unreadable, done.own_captures) == (2, 0, 1)
    found = [row["image"] for row in rows(tmp_path / "second" / "predictions.csv")]
    assert found == ["a.dcm", "theirs.dcm"]
    alone = predict_folder(detector, films / "archive.dcm", tmp_path / "third", progress=False)
    assert (alone.images, alone.own_captures) == (0, 1)
