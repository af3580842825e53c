"""The films that a person looks at: by p-value, the most unusual first, with what their headers say of the patient."""

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from anomalib_cxr.anatomy.assessable import NOT_ASSESSABLE
from anomalib_cxr.csv_tables import csv_text
from anomalib_cxr.node.journal import Journal
from anomalib_cxr.node.spool import Spool

PAGE = 50
_HEADER = ("PatientName", "PatientID", "StudyDate", "AccessionNumber", "SeriesDescription")


class Row(NamedTuple):
    """One film of the worklist, by the model that finds it the most unusual.

    Attributes:
        film: Row of the journal.
        file: Name of its file.
        state: Of the film.
        model: Name of the model.
        model_sha256: Of its exported file.
        score: Normalised score.
        p_value: At the site, or None.
        threshold: Of the score.
        abnormal: Whether the score is above it, 0 or 1.
        not_assessable: Why the film should not be judged by its score; "" where it may be, None where nobody knows.
        header: Texts of its file by keyword, the patient's name among them; "" where there is none.
    """

    film: int
    file: str
    state: str
    model: str
    model_sha256: str
    score: float
    p_value: float | None
    threshold: float
    abnormal: int
    not_assessable: str | None
    header: dict[str, str]

    @property
    def decision(self) -> str:
        """The decision in a word."""
        return NOT_ASSESSABLE if self.not_assessable else "abnormal" if self.abnormal else "normal"


def worklist(journal: Journal, spool: Spool, page: int = 0, size: int = PAGE) -> list[Row]:
    """Read a page of the worklist.

    Args:
        journal: Journal of the node.
        spool: Its files.
        page: From 0.
        size: Films of a page.

    Returns:
        Films whose files are kept, by p-value and then by score; those without a p-value come last.
    """
    rows = journal.query(
        "SELECT films.id, file, state, model, model_sha256, score, p_value, threshold, abnormal, "
        "not_assessable FROM ("
        "  SELECT *, ROW_NUMBER() OVER (PARTITION BY film ORDER BY p_value IS NULL, p_value, score DESC) AS place "
        "  FROM scores) AS best JOIN films ON films.id = best.film "
        "WHERE place = 1 AND file IS NOT NULL ORDER BY p_value IS NULL, p_value, score DESC, films.id LIMIT ? OFFSET ?",
        size,
        page * size,
    )
    return [_row(spool, row) for row in rows]


def film_rows(journal: Journal, spool: Spool, film: int) -> list[Row]:
    """What each model said of one film; none if the film is unknown, unscored or no longer kept."""
    rows = journal.query(
        "SELECT films.id, file, state, model, model_sha256, score, p_value, threshold, abnormal, "
        "not_assessable FROM scores "
        "JOIN films ON films.id = film WHERE films.id = ? AND file IS NOT NULL ORDER BY scores.rowid",
        film,
    )
    return [_row(spool, row) for row in rows]


def _row(spool: Spool, row: sqlite3.Row) -> Row:
    return Row(*row, header_texts(spool, row["file"]))  # type: ignore[call-arg]


def table(journal: Journal, spool: Spool) -> Iterator[str]:
    """Write the whole worklist as CSV, a page at a time; no cell is a formula to a spreadsheet."""
    names = ("film", "model", "score", "p_value", "threshold", "decision", "not_assessable_because", "state")
    yield csv_text([[*names, *_HEADER]])
    page = 0
    while rows := worklist(journal, spool, page):
        yield csv_text(
            [
                row.film, row.model, row.score, "" if row.p_value is None else row.p_value, row.threshold,
                row.decision, row.not_assessable or "", row.state, *row.header.values(),
            ]
            for row in rows
        )  # fmt: skip
        page += 1


def header_texts(spool: Spool, file: str) -> dict[str, str]:
    """Read what a film's header says, as text of at most 64 characters each."""
    from pydicom import dcmread

    try:
        header = dcmread(spool.film(file), specific_tags=[*_HEADER, "SpecificCharacterSet"], stop_before_pixels=True)
        return {keyword: str(header.get(keyword) or "")[:64] for keyword in _HEADER}
    except Exception:  # noqa: BLE001  # pydicom raises whatever a broken file makes it stumble over
        return dict.fromkeys(_HEADER, "")
