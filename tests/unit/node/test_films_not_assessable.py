"""Films that a model should not judge, in everything that the node says of them."""

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from archive import Archive, send, until
from drawn_films import ramp, write_dicom
from exported_by_hand import metadata, write_onnx
from limits_by_hand import too_bright_above
from nodes import configuration, drawn_settings
from pydicom import Dataset, dcmread

from anomalib_cxr.node import pages
from anomalib_cxr.node.journal import FORMAT, Journal, Score
from anomalib_cxr.node.logs import JsonLines, logger
from anomalib_cxr.node.node import Node
from anomalib_cxr.node.prometheus import metrics
from anomalib_cxr.node.worklist import table, worklist


class Lines:
    """What the node logs, as objects."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import logging

        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(JsonLines())
        monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
        logger.setLevel(logging.INFO)

    def read(self) -> list[dict]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def codes(report: Dataset) -> dict[str, list[str]]:
    """Meanings of the coded answers, by the code of what is asked."""
    found: dict[str, list[str]] = {}

    def look(node: Dataset) -> None:
        for item in node.get("ContentSequence", []):
            if item.ValueType == "CODE":
                meaning = item.ConceptCodeSequence[0].CodeMeaning
                found.setdefault(item.ConceptNameCodeSequence[0].CodeValue, []).append(meaning)
            look(item)

    look(report)
    return found


def test_all_that_is_said_of_a_film_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch)
    settings = drawn_settings(tmp_path)
    write_onnx(tmp_path / "model", described=metadata(film_limits=too_bright_above(0.7)))
    films = {
        "fit": write_dicom(tmp_path / "fit.dcm", ramp(40, 30, 0.2, 0.7)),
        "bright": write_dicom(tmp_path / "bright.dcm", ramp(40, 30, 0.7, 1.0)),
    }
    results = ["capture", "report", "segmentation"]
    with Archive() as archive:
        changes = {"destinations": [archive.settings()], "results": results}
        node = Node(configuration(tmp_path, settings | changes))
        try:
            assert send(node.receiver.port, *films.values()) == [0, 0]
            until(lambda: node.journal.counts()["sent"] == 2)
            kept = list((tmp_path / "node").rglob("*.dcm"))
            made = [dcmread(path) for path in kept]
            rows = worklist(node.journal, node.spool)
            text = "".join(table(node.journal, node.spool))
            page = pages.worklist_page(node.journal, node.spool, 0)
            overview = pages.overview(node.journal, node.shelf, pages.Watch(node.journal))
            film_pages = [pages.film_page(node.journal, node.spool, row.film, None) for row in rows]
            said = metrics(node.journal, node.shelf, pages.Watch(node.journal), node.receiver.answers)
        finally:
            node.stop()
    of = {
        name: [one for one in made if one.get("StudyInstanceUID") == dcmread(path).StudyInstanceUID]
        for name, path in films.items()
    }
    for name, unfit in (("fit", False), ("bright", True)):
        (report,) = (one for one in of[name] if one.get("Modality") == "SR")
        answers = codes(report)
        expected = "Film not assessable, whatever its score" if unfit else "Normal"
        assert answers["decision"] == [expected]
        assert answers.get("because", []) == (["too bright"] if unfit else [])
        assert report.SeriesDescription.endswith("film not assessable") == unfit
        assert "not for diagnosis" in report.SeriesDescription
        (capture,) = (one for one in of[name] if one.get("Modality") == "OT")
        assert ("Film not assessable: too bright." in capture.ImageComments) == unfit
    assert [(row.decision, row.not_assessable) for row in rows] == [("not assessable", "too bright"), ("normal", "")]
    listed = list(csv.DictReader(io.StringIO(text)))
    assert [(row["decision"], row["not_assessable_because"]) for row in listed] == [
        ("not assessable", "too bright"), ("normal", ""),
    ]  # fmt: skip
    assert page.count("not assessable</span>: too bright") == 1
    assert [str(one).count("not assessable</span>: too bright") for one in film_pages] == [1, 0]
    assert "<b>1</b>not assessable" in overview
    assert "anomalib_cxr_node_not_assessable 1\n" in said
    scored = {tuple(line["not_assessable"].items()) for line in lines.read() if line.get("event") == "scored"}
    assert scored == {(), (("mean", "too bright"),)}


def test_a_journal_of_the_first_format_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.arrived("a" * 64, "b" * 64, "sender", "a.dcm")
    journal.scored(1, [Score("old", "c" * 64, 0.4, None, 0.5, False, False)], [], [])
    journal.close()
    with closing(sqlite3.connect(path)) as old:
        old.execute("ALTER TABLE scores DROP COLUMN not_assessable")
        old.execute("PRAGMA user_version = 1")
        old.commit()
    journal = Journal(path)
    journal.scored(1, [Score("new", "d" * 64, 0.6, None, 0.5, True, False, "turned to the left")], [], [])
    rows = journal.query("SELECT model, score, not_assessable FROM scores ORDER BY model")
    assert [tuple(row) for row in rows] == [("new", 0.6, "turned to the left"), ("old", 0.4, None)]
    assert journal.not_assessable() == 1
    assert journal.query("PRAGMA user_version")[0][0] == FORMAT == 2
    journal.close()
