"""A film that is sent comes back as a result of its study, whatever happens on the way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from archive import Archive, echo, send, until
from drawn_films import PATIENT, ramp, write_dicom
from pydicom import dcmread

from anomalib_cxr.node.node import Node

Start = Callable[..., Node]


def test_a_film_comes_back_as_a_result_of_its_study(start: Start, archive: Archive, tmp_path: Path) -> None:
    node = start(destinations=[archive.settings()])
    path = write_dicom(tmp_path / "film.dcm", ramp(48, 40, 0.3, 0.9))
    assert echo(node.receiver.port) == 0
    assert send(node.receiver.port, path) == [0]
    until(lambda: node.journal.counts()["sent"])
    (result,) = archive.received
    film = dcmread(path)
    for keyword in ("StudyInstanceUID", *(name for name in PATIENT if name != "SpecificCharacterSet")):
        assert result[keyword].value == film[keyword].value, keyword
    assert result.SOPInstanceUID != film.SOPInstanceUID
    assert result.SeriesInstanceUID != film.SeriesInstanceUID
    assert result.SourceImageSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID
    (row,) = node.journal.query("SELECT * FROM scores")
    mean = (film.pixel_array / 4095).mean()
    assert abs(row["score"] - mean) < 1e-4  # the model's score is the mean brightness
    assert bool(row["abnormal"]) == (mean > 0.5)
    content = (tmp_path / "node" / "journal.sqlite").read_bytes() + b"".join(
        path.read_bytes() for path in (tmp_path / "node").glob("journal.sqlite-wal")
    )
    for known in ("4711", "ller", film.SOPInstanceUID, film.StudyInstanceUID):
        assert known.encode() not in content  # the journal knows no patient


def test_only_those_who_may_send_are_heard(start: Start, tmp_path: Path) -> None:
    node = start()
    path = write_dicom(tmp_path / "film.dcm", ramp(48, 40, 0.3, 0.9))
    assert send(node.receiver.port, path, calling="STRANGER") == [None]
    assert send(node.receiver.port, path, called="ANOTHER") == [None]
    assert echo(node.receiver.port, calling="../../etc") is None
    assert sum(node.journal.counts().values()) == 0


def test_an_archive_that_is_down_gets_its_results_later(start: Start, settings: dict, tmp_path: Path) -> None:
    node = start()
    films = [write_dicom(tmp_path / f"{number}.dcm", ramp(48, 40, 0.1 * number, 0.9)) for number in range(3)]
    assert send(node.receiver.port, *films) == [0, 0, 0]
    until(lambda: node.journal.counts()["failed"] == 3)
    (row, *_) = node.journal.query("SELECT reason, next_try FROM films")
    assert row["reason"] == "archive: it cannot be reached, or refuses the association"
    assert row["next_try"] is not None
    with Archive(settings["destinations"][0]["port"]) as archive:
        until(lambda: node.journal.counts()["sent"] == 3)
        found = {result.SourceImageSequence[0].ReferencedSOPInstanceUID for result in archive.received}
        assert found == {dcmread(film).SOPInstanceUID for film in films}
    assert {row["reason"] for row in node.journal.query("SELECT reason FROM films")} == {None}


def test_an_archive_that_refuses_is_asked_as_often_as_stated(start: Start, archive: Archive, tmp_path: Path) -> None:
    asked = []
    archive.answer = lambda data: asked.append(data.SOPInstanceUID) or 0xC000
    node = start(destinations=[archive.settings()], retry={"first_s": 0.01, "longest_s": 0.02, "tries": 3})
    path = write_dicom(tmp_path / "film.dcm", ramp(48, 40, 0.3, 0.9))
    send(node.receiver.port, path)
    given_up = "SELECT reason, next_try FROM films WHERE state = 'failed' AND next_try IS NULL"
    until(lambda: node.journal.query(given_up))
    assert len(asked) == 3
    assert len(set(asked)) == 1
    assert node.journal.query(given_up)[0]["reason"] == "archive: it answered 0xC000"
    archive.answer = 0x0000
    send(node.receiver.port, path)  # to send the film again is to ask for another try
    until(lambda: node.journal.counts()["sent"] == 1)
    assert [result.SOPInstanceUID for result in archive.received] == asked[:1]


def test_what_one_node_took_in_another_finishes(start: Start, archive: Archive, tmp_path: Path) -> None:
    node = start(destinations=[archive.settings()])
    node.worker.stop()
    node.worker.join()
    path = write_dicom(tmp_path / "film.dcm", ramp(48, 40, 0.3, 0.9))
    assert send(node.receiver.port, path) == [0]
    half = tmp_path / "node" / "films" / ".0123456789abcdef.tmp"  # killed while it was written
    half.write_bytes(b"half")
    node.stop()
    assert node.spool.film(next(node.spool.films.rglob("*-*.dcm")).relative_to(node.spool.films).as_posix()).exists()
    second = start(destinations=[archive.settings()])
    until(lambda: second.journal.counts()["sent"] == 1)
    assert len(archive.received) == 1
    assert not half.exists()


def test_a_film_that_cannot_be_scored_is_named_and_does_not_stop_the_next(
    start: Start, archive: Archive, tmp_path: Path
) -> None:
    node = start(destinations=[archive.settings()])
    huge = write_dicom(tmp_path / "huge.dcm", ramp(48, 40, 0.3, 0.9), Rows=65535, Columns=65535)
    black = write_dicom(tmp_path / "black.dcm", np.zeros((40, 40), np.float32))  # 0 / 0 in the graph
    good = write_dicom(tmp_path / "good.dcm", ramp(48, 40, 0.3, 0.9))
    assert send(node.receiver.port, huge, black, good) == [0, 0, 0]
    until(lambda: node.journal.counts() == {"received": 0, "scored": 0, "sent": 1, "failed": 2, "ignored": 0})
    first, second = (row["reason"] for row in node.journal.query("SELECT reason FROM films WHERE state = 'failed'"))
    assert first.startswith("the film cannot be read as a radiograph: its header claims 65535 x 65535 pixels")
    assert second == "mean: the model's score or heat map is not finite"
