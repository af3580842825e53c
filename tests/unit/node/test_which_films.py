"""Which films are scored, and what becomes of one that comes again, changed or under another's name."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from archive import Archive, send, until
from drawn_films import ramp, write_dicom
from exported_by_hand import write_onnx
from pydicom import Dataset, dcmread

from anomalib_cxr.node.configuration import FRONTAL_CHEST, Rule
from anomalib_cxr.node.node import Node
from anomalib_cxr.node.rules import why_ignored

Start = Callable[..., Node]


def header(**values: str) -> Dataset:
    data = Dataset()
    for keyword, value in values.items():
        setattr(data, keyword, value)
    return data


@pytest.mark.parametrize(
    ("values", "scored"),
    [
        ({"Modality": "DX"}, True),
        ({"Modality": "CR", "BodyPartExamined": "Chest", "ViewPosition": "AP"}, True),
        ({"Modality": "DX", "ViewPosition": "LL"}, False),
        ({"Modality": "DX", "BodyPartExamined": "HAND"}, False),
        ({"Modality": "DX", "SeriesDescription": "W Chest Lateral"}, False),
        ({"Modality": "DX", "StudyDescription": "Plateau chest"}, True),
        ({"Modality": "DX", "SeriesDescription": "Chest lat"}, False),
        ({"Modality": "OT"}, False),
        ({}, False),
        ({"Modality": "DX", "Manufacturer": "anomalib-cxr"}, False),  # a result that came back
    ],
)
def test_frontal_chest_films_are_scored_unless_told_otherwise(values: dict[str, str], scored: bool) -> None:
    assert (why_ignored(header(**values), [FRONTAL_CHEST]) is None) is scored


def test_one_rule_that_is_met_is_enough() -> None:
    rules = [Rule(modality=("CR",)), Rule(description=("*thorax*",))]
    assert why_ignored(header(Modality="CR"), rules) is None
    assert why_ignored(header(Modality="DX", SeriesDescription="Thorax p.a."), rules) is None
    reason = why_ignored(header(Modality="DX", SeriesDescription="Hand"), rules)
    assert reason == "its Modality is none of the rule's; or its descriptions meet no pattern of the rule"


def test_other_films_are_counted_answered_with_success_and_not_kept(start: Start, tmp_path: Path) -> None:
    node = start()
    lateral = write_dicom(tmp_path / "lateral.dcm", ramp(32, 32, 0.2, 0.9), ViewPosition="LL")
    assert send(node.receiver.port, lateral, lateral) == [0, 0]
    assert node.journal.counts()["ignored"] == 1
    (row,) = node.journal.query("SELECT arrivals, file FROM films")
    assert tuple(row) == (2, None)
    assert not list(node.spool.films.rglob("*.dcm"))


def test_a_film_that_comes_again_is_no_second_finding(start: Start, archive: Archive, tmp_path: Path) -> None:
    node = start(destinations=[archive.settings()])
    film = write_dicom(tmp_path / "film.dcm", ramp(32, 32, 0.2, 0.9))
    corrected = dcmread(film)
    corrected.PatientName = "Meier^Hans"  # as an archive does on its way
    corrected.save_as(tmp_path / "corrected.dcm")
    assert send(node.receiver.port, film, film, tmp_path / "corrected.dcm") == [0, 0, 0]
    until(lambda: node.journal.counts()["sent"])
    assert send(node.receiver.port, film) == [0]
    time.sleep(0.2)
    assert len(archive.received) == 1
    (row,) = node.journal.query("SELECT arrivals, state FROM films")
    assert tuple(row) == (4, "sent")


def test_another_film_of_the_same_name_is_kept_and_reported(start: Start, archive: Archive, tmp_path: Path) -> None:
    node = start(destinations=[archive.settings()])
    film = write_dicom(tmp_path / "film.dcm", ramp(32, 32, 0.2, 0.9))
    other = dcmread(film)
    other.PixelData = bytes(reversed(other.PixelData))
    other.save_as(tmp_path / "other.dcm")
    assert send(node.receiver.port, film, tmp_path / "other.dcm", tmp_path / "other.dcm") == [0, 0, 0]
    until(lambda: node.journal.counts()["sent"])
    first, second = node.journal.query("SELECT state, reason, file, arrivals FROM films ORDER BY id")
    assert first["state"] == "sent"
    assert second["state"] == "failed"
    assert second["reason"] == "another film has the same SOP Instance UID and other pixels: both are kept"
    assert second["arrivals"] == 2
    for row, source in ((first, film), (second, tmp_path / "other.dcm")):
        assert dcmread(node.spool.film(row["file"])).PixelData == dcmread(source).PixelData
    assert len(archive.received) == 1


def test_two_runs_give_one_set_of_identifiers(start: Start, archive: Archive, tmp_path: Path) -> None:
    film = write_dicom(tmp_path / "film.dcm", ramp(32, 32, 0.2, 0.9))
    for run in range(2):
        node = start(destinations=[archive.settings()], folder=f"node{run}")
        send(node.receiver.port, film)
        until(lambda node=node: node.journal.counts()["sent"])
    first, second = archive.received
    assert first.SOPInstanceUID == second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID


def test_models_are_exchanged_without_a_stop(start: Start, archive: Archive, settings: dict, tmp_path: Path) -> None:
    node = start(destinations=[archive.settings()])
    film = write_dicom(tmp_path / "film.dcm", ramp(32, 32, 0.6, 0.9))
    send(node.receiver.port, film)
    until(lambda: node.journal.counts()["sent"])
    (before,) = node.shelf.hashes
    (first,) = node.spool.results.rglob("*.dcm")
    content = first.read_bytes()
    (tmp_path / "model" / "model.onnx").write_bytes(b"broken")
    assert not node.reload(tmp_path / "node.yaml")
    assert "Model 'mean' cannot be used: " in str(node.shelf.problem)
    assert node.shelf.hashes == [before]
    shutil.rmtree(tmp_path / "model")
    write_onnx(tmp_path / "model", threshold=0.95)
    assert node.reload(tmp_path / "node.yaml")
    assert node.shelf.problem is None
    models = yaml.safe_load((tmp_path / "node.yaml").read_text())["models"]
    write_onnx(tmp_path / "old")
    both = [*models, {"name": "old", "path": "old/model.onnx"}]
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(settings | {"models": both}))
    assert node.reload(tmp_path / "both.yaml")
    assert before in node.shelf.hashes
    send(node.receiver.port, film)  # the new model has not seen it
    until(lambda: len(archive.received) == 2)
    assert archive.received[0].SOPInstanceUID != archive.received[1].SOPInstanceUID
    until(lambda: node.journal.counts()["sent"])
    assert first.read_bytes() == content  # what was sent stays what it was
    decided = {row["model"]: row["abnormal"] for row in node.journal.query("SELECT model, abnormal FROM scores")}
    assert decided == {"mean": 0, "old": 1}


def test_films_are_deleted_when_their_time_is_over(start: Start, archive: Archive, tmp_path: Path) -> None:
    node = start(destinations=[archive.settings()], retention_days=30)
    film = write_dicom(tmp_path / "film.dcm", ramp(32, 32, 0.2, 0.9))
    waiting = write_dicom(tmp_path / "waiting.dcm", ramp(32, 32, 0.4, 0.9))
    archive.answer = lambda data: 0 if data.SourceImageSequence[0].ReferencedSOPInstanceUID == uid else 0xA700
    uid = dcmread(film).SOPInstanceUID
    send(node.receiver.port, film, waiting)
    until(lambda: node.journal.counts()["sent"] == node.journal.counts()["failed"] == 1)
    assert node.retention.clean(time.time() + 29 * 86400) == 0
    assert node.retention.clean(time.time() + 31 * 86400) == 1
    (kept,) = node.spool.films.rglob("*.dcm")  # what is still to be sent stays
    assert np.array_equal(dcmread(kept).pixel_array, dcmread(waiting).pixel_array)
    assert len(list(node.spool.results.rglob("*.dcm"))) == 1
    send(node.receiver.port, film)  # the journal knows it still
    time.sleep(0.2)
    assert len(archive.received) == 1
    assert len(list(node.spool.films.rglob("*.dcm"))) == 1
